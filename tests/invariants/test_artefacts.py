"""Invariant 3: what is saved answers as what was trained.  Opened with plain transformers and PEFT only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.data.batch import Group, Tokens, collate
from luthier.model import methods
from luthier.model.config import Freeze, Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer

# PEFT itself uses a name that newer transformers deprecate.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
TOLERANCE = 1e-5
IDS = [[5, 80, 33, 7, 200, 41, 9], [300, 12, 12, 90], [17, 3]]


def opened(folder: Path, method: Method, adapters: tuple[str, ...] = ()) -> Model:
    # One adapter in twenty-five trains to weights that float32 alone computes no better than to 3e-5.
    torch.manual_seed(0)
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    model = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=True)
    methods.apply(model, method, adapters)
    return model


def trained(model: Model) -> Model:
    """Three plain gradient steps, large enough to change every logit."""
    import numpy as np

    groups = [
        Group((Tokens(np.array(ids, np.int32), np.array([0] + [1] * (len(ids) - 1), np.float32)),)) for ids in IDS
    ]
    batch = collate(groups, range(len(groups)))
    model.train_mode()
    optimizer = torch.optim.SGD(model.trained().values(), lr=0.02)
    for _ in range(3):
        optimizer.zero_grad()
        (-model.logprobs(batch)[0].sum()).backward()
        optimizer.step()
    model.eval_mode()
    return model


def live_logits(model: Model) -> list[Tensor]:
    with torch.no_grad():
        return [model.network(torch.tensor([ids])).logits[0] for ids in IDS]


def plain_logits(network: Any) -> list[Tensor]:
    network.eval()
    with torch.no_grad():
        return [network(torch.tensor([ids])).logits[0] for ids in IDS]


def plain_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    # Older transformers run Gemma 2 through SDPA, which leaves out its cap on attention scores.
    attention = "eager" if "gemma2" in (folder / "config.json").read_text() else None
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)


def plain_adapter(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(plain_model(base), str(folder))


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


LORAS = {
    "lora": Lora(rank=4),
    "rslora": Lora(rank=4, rslora=True, target=("q_proj", "v_proj", "down_proj")),
    "dora": Lora(rank=4, alpha=8, dora=True),
    "pissa": Lora(rank=4, alpha=4, init="pissa", dropout=0.1),
    "pissa-rslora": Lora(rank=4, alpha=4, init="pissa", rslora=True),
    "olora": Lora(rank=4, alpha=4, init="olora"),
    "regex": Lora(rank=2, target=r".*\.1\.mlp\..*_proj"),
    "head saved": Lora(rank=4, modules_to_save=("lm_head",)),
}


@pytest.mark.parametrize("name", LORAS)
def test_adapter_answers_the_same_in_plain_peft(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2-untied", initializer_range=0.1)
    untouched = plain_logits(plain_model(base))
    model = opened(base, LORAS[name])
    assert difference(live_logits(model), untouched) < TOLERANCE or name.startswith("gaussian")
    live = live_logits(trained(model))
    assert difference(live, untouched) > 1e-2
    methods.save(model, tmp_path)
    assert difference(live, plain_logits(plain_adapter(base, tmp_path))) < TOLERANCE


@pytest.mark.parametrize("name", LORAS)
def test_merged_adapter_answers_the_same(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = trained(opened(tiny_model_dir("qwen2-untied", initializer_range=0.1), LORAS[name]))
    live = live_logits(model)
    methods.merge(model, tmp_path)
    assert difference(live, plain_logits(plain_model(tmp_path))) < TOLERANCE
    assert difference(live, live_logits(model)) < TOLERANCE


@pytest.mark.parametrize("vocabulary", [("embed_tokens",), ("lm_head",), ("embed_tokens", "lm_head")])
def test_tied_vocabulary_saved_whole(
    vocabulary: tuple[str, ...], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_model_dir("qwen2", initializer_range=0.1)
    model = trained(opened(base, Lora(rank=2, modules_to_save=vocabulary)))
    live = live_logits(model)
    methods.save(model, tmp_path / "a")
    assert difference(live, plain_logits(plain_adapter(base, tmp_path / "a"))) < TOLERANCE
    methods.merge(model, tmp_path / "m")
    assert difference(live, plain_logits(plain_model(tmp_path / "m"))) < TOLERANCE


@pytest.mark.parametrize("method", [Full(), Freeze(last_layers=1), Freeze(pattern="norm|embed")], ids=str)
@pytest.mark.parametrize("shape", ["qwen2", "qwen2-untied", "gemma2"])
def test_whole_model_answers_the_same(
    method: Method, shape: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    base = tiny_model_dir(shape, initializer_range=0.1)
    model = trained(opened(base, method))
    live = live_logits(model)
    assert difference(live, plain_logits(plain_model(base))) > 1e-2
    methods.save(model, tmp_path)
    assert difference(live, plain_logits(plain_model(tmp_path))) < TOLERANCE


def test_tokenizer_and_template_travel_along(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = opened(tiny_model_dir(), Lora(rank=2))
    methods.save(model, tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    text = "你好 violin 123"
    assert saved(text).input_ids == model.tokenizer(text).input_ids
    assert saved.chat_template == model.tokenizer.chat_template
    assert not [path.name for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "olora", "head saved"])
def test_earlier_adapter_goes_on_exactly(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2-untied", initializer_range=0.1)
    first = trained(opened(base, LORAS[name]))
    methods.save(first, tmp_path)
    again = opened(base, LORAS[name], (str(tmp_path),))
    again.eval_mode()
    assert difference(live_logits(first), live_logits(again)) == 0.0
    assert list(first.trained()) == list(again.trained())
    assert all(torch.equal(a, b) for a, b in zip(first.trained().values(), again.trained().values(), strict=True))


def test_two_adapters_add_up(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2", initializer_range=0.1)
    methods.save(trained(opened(base, Lora(rank=2))), tmp_path / "one")
    merged = opened(base, Full(), (str(tmp_path / "one"),))
    merged.eval_mode()
    assert difference(live_logits(merged), plain_logits(plain_adapter(base, tmp_path / "one"))) < TOLERANCE
