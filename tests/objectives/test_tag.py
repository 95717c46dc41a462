"""Tagging: the loss and gradients of transformers' heads, words and their pieces, whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import save_encoder
from transformers import AutoModelForTokenClassification, AutoTokenizer

from luthier.base.errors import DataError
from luthier.base.records import Tagged, Where
from luthier.data.batch import collate
from luthier.data.config import DataConfig
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, ModelConfig
from luthier.model.load import context_length, load_model, load_tokenizer
from luthier.objectives.config import TokenCls
from luthier.objectives.registry import build
from luthier.objectives.setting import Setting
from luthier.objectives.tag import Tagging, words_of

CPU = Mesh(torch.device("cpu"))
ROWS = (
    (["The", "violin", "maker", "planes", "Stradivari", "."], ["O", "B-job", "I-job", "O", "B-name", "O"]),
    (["Numbers", ":", "0"], ["O", "O", "B-name"]),
    (list("制琴师把云杉面板"), ["B-job", "I-job", "I-job", "O", "O", "O", "O", "O"]),
)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Callable[[str], Path]:
    def folder(shape: str) -> Path:
        return tiny_model_dir(shape) if shape == "qwen2" else save_encoder(tmp_path_factory.mktemp(shape), shape)

    return folder


def rows_of(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"tokens": tokens, "tags": tags}) for tokens, tags in ROWS), encoding="utf-8")
    return path


def made(folder: Path, rows: Path, **settings: Any) -> tuple[Tagging, Setting]:
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    data = DataConfig(datasets=(str(rows),), overlong="truncate", cache_dir=str(rows.parent / "cache"))
    setting = Setting(tokenizer, config, data, context_length(config, tokenizer))
    objective = build(TokenCls.model_validate(settings), setting)
    assert isinstance(objective, Tagging)
    return objective, setting


WEIGHTED: list[tuple[str, dict[str, Any]]] = [
    *((shape, {}) for shape in ("bert", "roberta", "deberta", "qwen2")),
    ("bert", {"class_weights": ("1", "3", "2", "0.5"), "label_smoothing": 0.1}),
    ("bert", {"class_weights": ("B-name=0.5", "B-job=3", "I-job=2")}),
    ("bert", {"class_weights": ("balanced",)}),
]


@pytest.mark.parametrize(("shape", "settings"), WEIGHTED)
def test_loss_and_gradients_are_those_of_transformers(
    shape: str, settings: dict[str, Any], folder_of: Callable[[str], Path], tmp_path: Path
):
    folder = folder_of(shape)
    objective, setting = made(folder, rows_of(tmp_path), **settings)
    assert objective.labels == ("O", "B-job", "I-job", "B-name")
    torch.manual_seed(1)
    model = load_model(setting.model, CPU.device, tokenizer=setting.tokenizer, trained=True, head=objective.head)
    methods.apply(model, Full())
    model.train_mode()
    model.eval_mode()
    groups = [objective.encode(Tagged(tuple(words), tuple(tags), Where("test", 1))) for words, tags in ROWS]
    batches = [collate([g for g in groups[:2] if g], [0, 1]), collate([g for g in groups[2:] if g], [2])]
    result = begin(model, objective, batches, CPU, max_norm=0.0).read()
    network = AutoModelForTokenClassification.from_pretrained(folder, num_labels=4)
    network.load_state_dict(model.base.state_dict())
    network.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    spaced = [[" " * (n > 0 and shape == "qwen2" and row < 2) + word for n, word in enumerate(words)]
              for row, (words, _) in enumerate(ROWS)]  # fmt: skip
    batch = tokenizer(spaced, is_split_into_words=True, padding=True, return_tensors="pt")
    wanted = torch.full_like(batch["input_ids"], -100)
    for row, (_, tags) in enumerate(ROWS):
        owners = batch.word_ids(row)
        for place, word in enumerate(owners):
            if word is not None and (place == 0 or owners[place - 1] != word):
                wanted[row, place] = objective.labels.index(tags[word])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if settings:
        # 17 words: 10 O, 2 B-job, 3 I-job, 2 B-name.
        numbers = [17 / 40, 17 / 8, 17 / 12, 17 / 8] if settings["class_weights"] == ("balanced",) else [1, 3, 2, 0.5]
        expected = torch.nn.functional.cross_entropy(
            network(**inputs).logits.flatten(0, 1),
            wanted.flatten(),
            torch.tensor(numbers),
            label_smoothing=settings.get("label_smoothing", 0.0),
        )
    else:
        expected = network(**inputs, labels=wanted).loss
    expected.backward()
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    mine = dict(model.network.named_parameters())
    for name, weight in network.named_parameters():
        if weight.grad is not None and weight.grad.abs().max() > 1e-7:
            torch.testing.assert_close(mine[name].grad, weight.grad, rtol=1e-4, atol=1e-5)


def test_pieces_never_reach_over_a_word_and_words_keep_their_spaces(folder_of: Callable[[str], Path], tmp_path: Path):
    _, setting = made(folder_of("qwen2"), rows_of(tmp_path))
    words = ["violin", "maker", "制", "琴"]
    pieces = words_of(setting.plain, words)
    assert setting.tokenizer.decode(pieces.ids) == "violin maker制琴"
    assert [word for word in pieces.firsts if word is not None] == [0, 1, 2, 3]


def test_words_beyond_the_longest_length_are_told(folder_of: Callable[[str], Path], tmp_path: Path):
    objective, _ = made(folder_of("bert"), rows_of(tmp_path))
    group = objective.encode(Tagged(("violin",) * 300, ("O",) * 300, Where("test", 1)))
    assert group is not None and group.cut and len(group) == 128 and group.sequences[0].ids[-1] == 3
    unseen = objective.encode(Tagged(("violin", ""), ("O", "B-job"), Where("test", 1)))
    assert unseen is not None and not unseen.cut, "a word without a piece was not cut off"


def test_tags_that_are_numbers_are_learned_and_are_no_entities(folder_of: Callable[[str], Path], tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"tokens": ["a", "b"], "ner_tags": [0, 3]}))
    objective, _ = made(folder_of("bert"), tmp_path / "rows.jsonl")
    assert objective.labels == ("0", "3")
    assert objective.note is not None and "--labels O B-PER I-PER" in objective.note
    with pytest.raises(DataError, match="count through the names"):
        made(folder_of("bert"), tmp_path / "rows.jsonl", labels=("O", "B-a", "I-a"))


def test_numbers_count_through_the_names_that_are_given(folder_of: Callable[[str], Path], tmp_path: Path):
    names = ("O", "B-a", "I-a", "B-b")
    objectives: list[Tagging] = []
    for file, tags in (("numbers.jsonl", [0, 3]), ("names.jsonl", ["O", "B-b"])):
        (tmp_path / file).write_text(json.dumps({"tokens": ["a", "b"], "ner_tags": tags}))
        objective, setting = made(folder_of("bert"), tmp_path / file, labels=names, class_weights=("balanced",))
        (group,) = [objective.encode(record) for record in setting.records("tagging")]
        assert group is not None and group.sequences[0].targets is not None
        assert objective.scheme == "BIO" and [int(at) for at in group.sequences[0].targets if at] == [3]
        objectives.append(objective)
    weights = [objective.weights_C for objective in objectives]
    assert weights[0] is not None and weights[1] is not None and torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"tokens": ["a", "b"], "tags": ["O", "O"]}, "only one tag, 'O'"),
        ({"tokens": ["a", "b"], "tags": ["O"]}, "rows.jsonl:1 tags: 1 tags for 2 tokens"),
        ({"text": "a b", "label": "pos"}, "rows.jsonl:1 label: a list is expected"),
    ],
)
def test_rows_without_tags_to_tell_apart_are_refused(
    row: dict[str, Any], what: str, folder_of: Callable[[str], Path], tmp_path: Path
):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=what):
        made(folder_of("bert"), tmp_path / "rows.jsonl")


def test_a_run_finds_entities_and_leaves_what_plain_transformers_opens(
    folder_of: Callable[[str], Path], tmp_path: Path
):
    from luthier.cli.app import main

    rows = tmp_path / "rows.conll"
    rows.write_text("\n\n".join("violin B-job\nmaker I-job\nplanes O\ntop B-wood" for _ in range(16)) + "\n")
    flags = {
        "model": folder_of("bert"), "dataset": rows, "val_dataset": rows, "train_type": "full", "num_train_epochs": 6,
        "learning_rate": 3e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache", "device": "cpu",
    }  # fmt: skip
    assert main(["train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    (run,) = (tmp_path / "run").glob("v*")
    rows_logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval_f1"] for row in rows_logged if "eval_loss" in row][-1] == 1.0
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "BEST").read_text().strip()
    network = AutoModelForTokenClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    inputs = tokenizer(["violin", "maker", "planes", "top"], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        numbers = network(**inputs).logits[0].argmax(1).tolist()
    owners = inputs.word_ids()
    firsts = [owners.index(word) for word in range(4)]
    assert [network.config.id2label[numbers[place]] for place in firsts] == ["B-job", "I-job", "O", "B-wood"]
