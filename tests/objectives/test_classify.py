"""Classification: losses and gradients of transformers' own heads, labels, weights of classes, whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import save_encoder
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import Labelled, Where
from luthier.data.batch import Group, collate
from luthier.data.config import DataConfig
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.model import methods
from luthier.model.config import Full, ModelConfig
from luthier.model.load import Model, context_length, load_model, load_tokenizer
from luthier.objectives.classify import Classification
from luthier.objectives.config import SeqCls
from luthier.objectives.registry import build
from luthier.objectives.setting import Setting
from luthier.objectives.weights import class_weights

CPU = Mesh(torch.device("cpu"))
HERE = Where("test", 1)
TEXTS = (
    ("What is your name?", None),
    ("The violin maker planes the spruce top until it rings.", "I am a small model."),
    ("制琴师把云杉面板刨薄，直到它发出声音。", None),
    ("Numbers: 0 1 2 3", "你叫什么名字？"),
)
LABELS: dict[str, Sequence[Any]] = {
    "single_label_classification": ("a", "b", "c", "a"),
    "multi_label_classification": (("a", "c"), ("b",), (), ("a", "b", "c")),
    "regression": (0.5, -1.0, 2.25, 0.0),
}


def rows_of(folder: Path, problem: str) -> Path:
    path = folder / "rows.jsonl"
    rows = [
        {"sentence1": text, "sentence2": pair, "label": label} if pair else {"text": text, "label": label}
        for (text, pair), label in zip(TEXTS, LABELS[problem], strict=True)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def made(folder: Path, rows: Path, **settings: Any) -> tuple[Classification, Model, list[Group]]:
    """The objective for a file, a model in evaluation mode whose every weight moves, and the file's groups."""
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    data = DataConfig(datasets=(str(rows),), overlong="truncate", cache_dir=str(rows.parent / "cache"))
    setting = Setting(tokenizer, config, data, context_length(config, tokenizer))
    objective = build(SeqCls.model_validate(settings), setting)
    assert isinstance(objective, Classification)
    torch.manual_seed(1)
    model = load_model(config, CPU.device, tokenizer=tokenizer, trained=True, head=objective.head)
    methods.apply(model, Full())
    model.train_mode()
    model.eval_mode()
    groups = [objective.encode(record) for record in setting.records("classification")]
    return objective, model, [group for group in groups if group is not None]


def step(model: Model, objective: Classification, groups: list[Group]) -> tuple[float, dict[str, Tensor]]:
    batches = [collate(groups[:1], [0]), collate(groups[1:], range(1, len(groups)))]
    model.network.zero_grad()
    result = begin(model, objective, batches, CPU, max_norm=0.0).read()
    return result.loss, {name: weight.grad for name, weight in model.trained().items() if weight.grad is not None}


def theirs(model: Model, folder: Path, problem: str, labels: Sequence[str]) -> tuple[Tensor, nn.Module]:
    """The loss of transformers' own head on the padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(labels), problem_type=problem, pad_token_id=0
    )
    network.load_state_dict(model.base.state_dict())
    network.eval()
    parts = [tokenizer(text, pair) for text, pair in TEXTS]
    if "[SEP]" not in tokenizer.get_vocab():
        parts = [tokenizer(f"{text}\n{pair}" if pair else text) for text, pair in TEXTS]
    batch = tokenizer.pad(parts, return_tensors="pt")
    if network.config.model_type in ("distilbert", "modernbert", "roberta"):
        batch.pop("token_type_ids")
    given = LABELS[problem]
    if problem == "single_label_classification":
        wanted = torch.tensor([labels.index(label) for label in given])
    elif problem == "multi_label_classification":
        wanted = torch.tensor([[float(label in row) for label in labels] for row in given])
    else:
        wanted = torch.tensor(given)
    if network.config.model_type == "bart":  # its head wants as many ends of texts in every row
        rows = [tokenizer(text, pair, return_tensors="pt") for text, pair in TEXTS]
        inputs = [{"input_ids": row["input_ids"], "attention_mask": row["attention_mask"]} for row in rows]
        losses = [network(**row, labels=wanted[number : number + 1]).loss for number, row in enumerate(inputs)]
        return torch.stack(losses).mean(), network
    return network(**batch, labels=wanted).loss, network


SHAPES = (
    "bert", "roberta", "distilbert", "electra", "albert", "modernbert", "modernbert-mean", "deberta", "bart", "qwen2",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path]) -> Callable[[str], Path]:
    def folder(shape: str) -> Path:
        return tiny_model_dir(shape) if shape == "qwen2" else save_encoder(tmp_path_factory.mktemp(shape), shape)

    return folder


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_transformers(shape: str, folder_of: Callable[[str], Path], tmp_path: Path):
    folder = folder_of(shape)
    for problem in LABELS if shape in ("bert", "qwen2") else ["single_label_classification"]:
        objective, model, groups = made(folder, rows_of(tmp_path, problem), problem_type=problem)
        assert model.packed == (shape not in ("deberta", "bart"))
        loss, mine = step(model, objective, groups)
        expected, network = theirs(model, folder, problem, objective.labels)
        expected.backward()
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for name, weight in network.named_parameters():
            if weight.grad is not None and weight.grad.abs().max() > 1e-7:
                torch.testing.assert_close(mine[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_weights_of_classes_and_smoothing_are_those_of_torch(folder_of: Callable[[str], Path], tmp_path: Path):
    problem = "single_label_classification"
    objective, model, groups = made(
        folder_of("bert"), rows_of(tmp_path, problem), class_weights=("balanced",), label_smoothing=0.1
    )
    batch = collate(groups, range(4))
    wanted = torch.tensor([0, 1, 2, 0])
    weights = torch.tensor([4 / 6, 4 / 3, 4 / 3])
    expected = nn.functional.cross_entropy(model.scores(batch), wanted, weights, label_smoothing=0.1)
    assert step(model, objective, groups)[0] == pytest.approx(expected.item(), rel=1e-6)


def test_focal_loss_without_focus_is_cross_entropy_and_with_it_that_of_the_paper(
    folder_of: Callable[[str], Path], tmp_path: Path
):
    objective, model, groups = made(
        folder_of("bert"), rows_of(tmp_path, "single_label_classification"), focal_gamma=2.0
    )
    logs = model.scores(collate(groups, range(4))).log_softmax(1)[torch.arange(4), torch.tensor([0, 1, 2, 0])]
    expected = (-((1 - logs.exp()) ** 2) * logs).mean()
    assert step(model, objective, groups)[0] == pytest.approx(expected.item(), rel=1e-5)


def test_a_row_of_weight_three_counts_as_three(folder_of: Callable[[str], Path], tmp_path: Path):
    objective, model, groups = made(folder_of("bert"), rows_of(tmp_path, "single_label_classification"))
    heavy = objective.encode(Labelled("What is your name?", "a", HERE, weight=3.0))
    assert heavy is not None
    three = begin(model, objective, [collate([groups[0]] * 3 + groups[1:2], range(4))], CPU, max_norm=0.0).read()
    model.network.zero_grad()
    one = begin(model, objective, [collate([heavy, groups[1]], range(2))], CPU, max_norm=0.0).read()
    assert one.loss == pytest.approx(three.loss, rel=1e-6)
    assert one.grad_norm == pytest.approx(three.grad_norm, rel=1e-5)


def test_control_tokens_in_a_text_are_text(folder_of: Callable[[str], Path], tmp_path: Path):
    objective, _, _ = made(folder_of("bert"), rows_of(tmp_path, "single_label_classification"))
    ids = objective.words(Labelled("a [SEP] b", "a", HERE)).ids.tolist()
    assert ids.count(3) == 1 and ids[-1] == 3


def test_long_texts_keep_the_token_that_ends_them(folder_of: Callable[[str], Path], tmp_path: Path):
    objective, _, _ = made(folder_of("bert"), rows_of(tmp_path, "single_label_classification"))
    words = objective.words(Labelled("name " * 200, "a", HERE, pair="maker"))
    assert words.cut and len(words.ids) == 128 and words.ids[-1] == 3
    assert words.segments is not None and set(words.segments.tolist()) == {0, 1}, "the longer text lost its end"


@pytest.mark.parametrize(
    ("labels", "settings", "what"),
    [
        (["a", "a"], {}, "only one class"),
        (["a", "b"], {"labels": ("a", "x")}, "not among those named"),
    ],
)
def test_data_that_cannot_be_classified(
    labels: list[str], settings: dict[str, Any], what: str, folder_of: Callable[[str], Path], tmp_path: Path
):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in labels))
    with pytest.raises(DataError, match=what):
        made(folder_of("bert"), path, **settings)


def test_a_set_without_any_label_says_what_is_wrong_with_its_rows(folder_of: Callable[[str], Path], tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"Input": "x", "Reward": "high"}))
    with pytest.raises(DataError, match=r"no label: .*rows\.jsonl:1 Reward: a number is expected"):
        made(folder_of("bert"), path)
    path.write_text("\n".join(json.dumps({"text": "x", "label": label}) for label in "ab"))
    with pytest.raises(ConfigError, match=r"2 labels, not 5\. Name all classes with --labels"):
        made(folder_of("bert"), path, num_labels=5)


@pytest.mark.parametrize("settings", [{"focal_gamma": 2.0}, {"label_smoothing": 0.1}, {"class_weights": ("balanced",)}])
def test_losses_of_classes_are_refused_for_numbers(
    settings: dict[str, Any], folder_of: Callable[[str], Path], tmp_path: Path
):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"Input": "x", "Reward": reward}) for reward in (0.5, 1.5)))
    with pytest.raises(ConfigError, match="numbers"):
        made(folder_of("bert"), path, **settings)


def trained(folder: Path, tmp_path: Path, rows: Path, **more: Any) -> Path:
    """A finished run's best checkpoint."""
    from luthier.cli.app import main

    flags = {
        "model": folder, "dataset": rows, "val_dataset": rows, "train_type": "full", "num_train_epochs": 4,
        "learning_rate": 3e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "output_dir": tmp_path / "run", "cache_dir": tmp_path / "cache", "device": "cpu", **more,
    }  # fmt: skip
    assert main(["train", *(str(word) for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    (run,) = (tmp_path / "run").glob("v*")
    return run / "checkpoints" / (run / "checkpoints" / "BEST").read_text().strip()


YES_OR_NO = [("I am a small model" if n % 2 else "The violin maker planes") + f" {n}" for n in range(24)]
ANSWERS = ["no" if n % 2 else "yes" for n in range(24)]


# PEFT asks transformers for an attribute under a name that has since changed.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_is_judged_used_and_opened_by_plain_libraries(
    method: str, folder_of: Callable[[str], Path], tmp_path: Path
):
    from luthier.cli.app import main

    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": t, "label": label}) for t, label in zip(YES_OR_NO, ANSWERS, strict=True)]
    rows.write_text("\n".join(lines))
    settings = {"learning_rate": 5e-3, "num_train_epochs": 10} if method == "lora" else {}
    checkpoint = trained(folder_of("bert"), tmp_path, rows, train_type=method, **settings)
    run = checkpoint.parents[1]
    evaluated = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval_macro_f1"] for row in evaluated if "eval_loss" in row][-1] == 1.0
    classes = json.loads((run / "classes.json").read_text())
    assert classes["confusion"] == [[12, 0], [0, 12]]
    assert [row["support"] for row in classes["classes"]] == [12, 12]
    assert [(row["name"], row["f1"]) for row in classes["averages"]] == [("macro average", 1.0), ("micro average", 1.0)]
    assert (run / "confusion.csv").read_text() == "wanted \\ predicted,no,yes\nno,12,0\nyes,0,12\n"
    assert (run / "plots/confusion.png").stat().st_size > 1000
    assert "| yes | 1.000 | 1.000 | 1.000 | 12 |" in (run / "report.md").read_text()
    found = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    assert [row["label"] for row in found] == [row["reference"] for row in found] == ANSWERS
    assert [(row["file"], row["line"]) for row in found] == [(str(rows), n + 1) for n in range(len(ANSWERS))]

    questions, answers = tmp_path / "new.jsonl", tmp_path / "out" / "answers.jsonl"
    questions.write_text("\n".join([*(json.dumps({"text": text}) for text in YES_OR_NO), '{"nothing": 1}']))
    flag = "--adapters" if method == "lora" else "--model"
    words = ["infer", flag, str(checkpoint), "--val_dataset", str(questions), "--result_path", str(answers)]
    assert main([*words, "--device", "cpu"]) == 0
    told = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row.get("label") for row in told] == [*ANSWERS, None] and "error" in told[-1]

    assert main([*words, "--device", "cpu"]) == 0
    assert [json.loads(line) for line in answers.read_text().splitlines()] == told
    asked, kept = questions.read_text(), answers.read_bytes()
    questions.write_text(asked.replace(YES_OR_NO[0], "something else"))
    assert main([*words, "--device", "cpu"]) == 2, "an old label is not taken for that of a text that has changed"
    assert answers.read_bytes() == kept

    if method == "lora":
        from peft import AutoPeftModelForSequenceClassification

        network = AutoPeftModelForSequenceClassification.from_pretrained(checkpoint, num_labels=2).eval()
    else:
        network = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
        assert network.config.id2label == {0: "no", 1: "yes"}
    with torch.no_grad():
        inputs = AutoTokenizer.from_pretrained(checkpoint)(YES_OR_NO, padding=True, return_tensors="pt")
        shares = network(**inputs).logits.softmax(1)
    assert [row["probabilities"]["yes"] for row in told[:-1]] == pytest.approx(shares[:, 1].tolist(), abs=1e-5)


def test_what_became_of_classes_that_do_not_exclude_each_other_is_a_table_and_a_picture(
    folder_of: Callable[[str], Path], tmp_path: Path
):
    rows = tmp_path / "rows.jsonl"
    given = [[answer, "even"] if n % 2 == 0 else [] for n, answer in enumerate(ANSWERS)]
    rows.write_text("\n".join(json.dumps({"text": t, "labels": own}) for t, own in zip(YES_OR_NO, given, strict=True)))
    run = trained(folder_of("bert"), tmp_path, rows, max_steps=2).parents[1]
    header, *lines = [line.split(",") for line in (run / "confusion.csv").read_text().splitlines()]
    assert header == ["class", "found rightly", "found wrongly", "missed", "left rightly"]
    counts = {name: [int(number) for number in numbers] for name, *numbers in lines}
    assert {name: (sum(row), row[0] + row[2]) for name, row in counts.items()} == {"even": (24, 12), "yes": (24, 12)}
    picture = (run / "plots/confusion.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    assert "![confusion](plots/confusion.png)" in (run / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("maybe=2",), "there is no class 'maybe'. The classes are no, yes"),
        (("yes=two",), "'yes=two' is not understood"),
        (("heavy",), "'heavy' is not understood"),
        (("1", "nan"), "2 weights of at least 0"),
        (("1",), "2 weights of at least 0"),
    ],
)
def test_weights_that_fit_no_class_are_refused(given: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        class_weights(given, ("no", "yes"), lambda: ({}, 0), several=False)


def test_columns_that_were_renamed_in_training_are_renamed_in_use(
    folder_of: Callable[[str], Path], tmp_path: Path, capsys: Any
):
    from luthier.cli.app import main

    rows = tmp_path / "rows.csv"
    named = [f"{text},{label},{n}" for n, (text, label) in enumerate(zip(YES_OR_NO, ANSWERS, strict=True))]
    rows.write_text("\n".join(["said,verdict,text", *named]))
    columns = '{"said": "text", "verdict": "label"}'
    checkpoint = trained(folder_of("bert"), tmp_path, rows, columns=columns, max_steps=2)
    answers = tmp_path / "answers.jsonl"
    use = ["infer", "--model", str(checkpoint), "--device", "cpu", "--result_path", str(answers)]
    assert main([*use, "--val_dataset", str(rows)]) == 0
    told = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [(row["text"], row["reference"]) for row in told] == list(zip(YES_OR_NO, ANSWERS, strict=True))

    other = tmp_path / "other.csv"
    other.write_text("remark,text\nthe violin maker planes,7\n")
    answers.unlink()
    assert main([*use, "--val_dataset", str(other), "--columns", '{"remark": "text"}']) == 0
    assert json.loads(answers.read_text())["text"] == "the violin maker planes"

    words = ["--eval_dataset", str(rows), "--output_dir", str(tmp_path / "judged")]
    assert main(["eval", "--model", str(checkpoint), "--device", "cpu", *words]) == 0
    assert "macro-f1" in capsys.readouterr().out


def test_a_classifier_does_not_talk(folder_of: Callable[[str], Path], tmp_path: Path, capsys: Any):
    from luthier.cli.app import main

    folder = save_encoder(tmp_path / "model", "bert", auto="AutoModelForSequenceClassification")
    assert main(["infer", "--model", str(folder)]) == 2
    assert "classifies" in capsys.readouterr().err


def test_numbers_are_learned_from_input_and_reward(folder_of: Callable[[str], Path], tmp_path: Path):
    rows = tmp_path / "rows.csv"
    rows.write_text("Input,Reward\n" + "\n".join(f"{text},{float(n % 2)}" for n, text in enumerate(YES_OR_NO)))
    checkpoint = trained(folder_of("bert"), tmp_path, rows, num_train_epochs=12, learning_rate=2e-3)
    network = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    assert network.config.problem_type == "regression" and network.config.num_labels == 1
    found = [json.loads(line) for line in (checkpoint.parents[1] / "predictions.jsonl").read_text().splitlines()]
    assert [round(row["value"]) for row in found] == [row["reference"] for row in found]
