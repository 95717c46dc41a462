"""New tokens: learned, listed, started in the middle of their pieces, trained, and opened by plain libraries."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.base.errors import ConfigError
from luthier.data.batch import Group, Tokens, collate
from luthier.model import methods
from luthier.model.config import Lora, ModelConfig, Vocabulary
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.merges import Merge, count_words, learn_merges, old_pieces
from luthier.model.vocabulary import Grown, grow, new_ids

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
TEXT = ["The luthier varnishes the scroll. 制琴师给琴头上漆。", "A luthier, two luthiers; 琴头 and 琴头."] * 3


def grown(base: Path, folder: Path, **asked: Any) -> Grown:
    return grow(ModelConfig(path=str(base)), Vocabulary.model_validate(asked), folder, lambda: TEXT)


def opened(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)


def test_pairs_are_joined_by_number_and_then_by_id() -> None:
    names = {1: "a", 2: "b", 3: "c"}
    words = {(1, 2, 3): 3, (2, 3): 2, (1, 1): 5, (3, 3): 1}
    merges = learn_merges(words, names, 10, first=4)
    assert merges == [Merge(1, 1, 4), Merge(2, 3, 5), Merge(1, 5, 6)], "a pair that stands once is left"
    assert old_pieces(merges, 4) == {4: (1, 1), 5: (2, 3), 6: (1, 2, 3)}
    assert learn_merges(words, {**names, 4: "aa"}, 1, first=5) == [Merge(1, 1, 4), Merge(2, 3, 5)], "aa was there"


@pytest.mark.parametrize("shape", ["qwen2", "qwen2-untied", "llama"])
def test_learned_tokens_join_old_ones_and_leave_the_rest(
    shape: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_model_dir(shape)
    found = grown(base, tmp_path / "grown", learn=12)
    assert len(found.tokens) == 12
    before, old = opened(base)
    after, new = opened(found.folder)
    assert {name: after.get_vocab()[name] for name in before.get_vocab()} == before.get_vocab()
    assert all(len(after(line)["input_ids"]) < len(before(line)["input_ids"]) for line in TEXT)
    assert all(after.decode(after(line)["input_ids"]) == line for line in TEXT)
    assert after("0 1 2 (b)")["input_ids"] == before("0 1 2 (b)")["input_ids"], "other text keeps its tokens"
    assert after.convert_tokens_to_ids("<|im_end|>") == before.convert_tokens_to_ids("<|im_end|>")
    tied = new.config.tie_word_embeddings
    assert (new.get_output_embeddings().weight is new.get_input_embeddings().weight) == tied
    first = max(before.get_vocab().values()) + 1
    names = {token: name for name, token in before.get_vocab().items()}
    pieces = old_pieces(learn_merges(count_words(TEXT, before), names, 12, first), first)
    assert sorted(pieces) == new_ids(found.folder) == list(range(first, first + 12))
    for now, was in (
        (new.get_input_embeddings().weight, old.get_input_embeddings().weight),
        (new.get_output_embeddings().weight, old.get_output_embeddings().weight),
    ):
        assert torch.equal(now[: len(before)], was[: len(before)])
        for token, parts in pieces.items():
            torch.testing.assert_close(now[token], was[list(parts)].mean(0))


def test_listed_tokens_start_in_the_middle_of_their_pieces(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("琴头\nvarnish\n", encoding="utf-8")
    found = grown(tiny_model_dir(), tmp_path / "grown", tokens=(str(tmp_path / "words.txt"),), special=("<|tool|>",))
    assert list(found.tokens) == ["琴头", "varnish", "<|tool|>"] and new_ids(found.folder) == list(
        found.tokens.values()
    )
    before, old = opened(tiny_model_dir())
    after, new = opened(found.folder)
    for word, token in found.tokens.items():
        assert after(word)["input_ids"] == [token]
        pieces = before(word)["input_ids"]
        wanted = old.get_input_embeddings().weight[pieces].mean(0)
        torch.testing.assert_close(new.get_input_embeddings().weight[token], wanted)
    assert after.decode([found.tokens["<|tool|>"]], skip_special_tokens=True) == ""
    ids = torch.tensor([before("planes the top")["input_ids"]])
    torch.testing.assert_close(new(ids).logits[..., : len(before)], old(ids).logits[..., : len(before)])


def test_nothing_new_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="knows all these"):
        grown(tiny_model_dir(), tmp_path / "a", tokens=("<|im_end|>",))
    with pytest.raises(ConfigError, match="no such file"):
        grown(tiny_model_dir(), tmp_path / "b", tokens=("missing.txt",))


def applied(folder: Path, method: Lora) -> Model:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, method)
    return model


@pytest.mark.parametrize("shape", ["qwen2", "qwen2-untied"])
@pytest.mark.parametrize("rows", [None, "new", "all"])
def test_rows_of_new_tokens_move_with_adapters(
    rows: Any, shape: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    found = grown(tiny_model_dir(shape), tmp_path / "grown", tokens=("琴头", "varnish"))
    ids = np.array([5, 9, *found.tokens.values(), 30, found.tokens["琴头"]], np.int32)
    batch = collate([Group((Tokens(ids, np.array([0, *[1] * 5], np.float32)),))], [0])
    model = applied(found.folder, Lora(rank=2, vocabulary=rows))
    others = model.base.get_input_embeddings().weight[:300].detach().clone() if rows != "all" else None
    model.train_mode()
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (-model.logprobs(batch)[0].sum()).backward()
        optimizer.step()
    model.eval_mode()
    extra = sum(w.numel() for n, w in model.trained().items() if "lora_" not in n)
    matrices = 1 if shape == "qwen2" else 2
    assert extra == matrices * 32 * (len(model.tokenizer) if rows == "all" else 2)
    live = model.logprobs(batch)[0].detach()
    methods.save(model, tmp_path / "adapter")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(found.folder), tmp_path / "adapter").eval()
    wide = torch.tensor(ids.astype(np.int64))
    with torch.no_grad():
        scores = plain(input_ids=wide[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(scores[:-1].gather(1, wide[1:, None])[:, 0], live[:-1], atol=1e-5, rtol=1e-5)
    methods.merge(model, tmp_path / "merged")
    _, merged = opened(tmp_path / "merged")
    with torch.no_grad():
        again = merged(input_ids=wide[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(again, scores, atol=1e-5, rtol=1e-5)
    if others is not None:
        assert torch.equal(merged.get_input_embeddings().weight[:300], others)
    shutil.rmtree(tmp_path / "merged")
