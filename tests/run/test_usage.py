"""What is offered for the result of a run: every command is one, and the lines of Python open what was saved."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import LINES
from encoders import save_encoder
from objectives.settings import learnable, opened

from luthier.data.config import DataConfig
from luthier.model import methods
from luthier.model.config import ModelConfig, Shape
from luthier.model.method import AdaLora, Adapting, Full, Ia3, Lora, Method, Prefix, Prompt
from luthier.model.scratch_encoders import t5_tokenizer, write_encoder
from luthier.objectives import config as kinds
from luthier.run.config import RunConfig
from luthier.run.resolve import resolve
from luthier.run.usage import Ending, python_lines, usage

CONFIG = resolve(RunConfig(model=ModelConfig(path="models/my base"), data=DataConfig(datasets=("a.jsonl#500",))))
MADE = Path("runs/a b/checkpoints/step-00000025")
ENDING = Ending("finished", 25, 65.0, MADE, MADE)
AGAIN = "Teach it more, from other data"


def of(**changes: Any) -> RunConfig:
    return CONFIG.model_copy(update=changes)


def test_commands_survive_a_shell() -> None:
    commands = usage(Path("runs/a b"), CONFIG, ENDING)
    assert shlex.split(commands["Talk to it"]) == ["luthier", "infer", "--adapters", str(MADE)]
    assert shlex.split(commands[AGAIN]) == [
        "luthier", "sft", "--model", "models/my base", "--adapters", str(MADE), "--train_type", "lora",
        "--dataset", "MORE.jsonl",
    ]  # fmt: skip
    assert shlex.split(usage(Path("r"), of(method=Full()), ENDING)["Talk to it"])[2] == "--model"
    assert usage(Path("r"), CONFIG, replace(ENDING, checkpoint=None, best=None)) == {}


@pytest.mark.parametrize("method", [Prompt(), Prefix(), Ia3(), AdaLora()])
def test_every_adapter_is_used_over_its_base(method: Method) -> None:
    commands = usage(Path("r"), of(method=method), ENDING)
    assert "--adapters" in commands["Talk to it"]
    assert (AGAIN in commands) == method.supports.continues
    if AGAIN in commands:
        assert "--adapters" in commands[AGAIN]


def test_students_talk_and_vectors_are_served() -> None:
    student = usage(Path("run"), of(objective=kinds.Distill(teacher="big"), method=Full()), ENDING)
    assert student["Talk to it"] == f"luthier infer --model '{MADE}'"
    assert f"--task_type distill --teacher big --model '{MADE}'" in student[AGAIN]
    embedder = usage(Path("run"), of(objective=kinds.Embed(), method=Full()), ENDING)
    assert embedder["Serve its vectors (/v1/embeddings)"] == f"luthier deploy --model '{MADE}'"


def test_other_tasks_are_taught_by_their_own_name() -> None:
    commands = usage(Path("r"), of(objective=kinds.Mlm(), method=Full()), ENDING)
    assert "Talk to it" not in commands
    assert shlex.split(commands[AGAIN])[:4] == ["luthier", "train", "--task_type", "mlm"]


OPENED: list[tuple[kinds.Objective, Method, str]] = [
    (kinds.Sft(), Lora(rank=2), "PeftModelForCausalLM"),
    (kinds.Sft(), Ia3(), "PeftModelForCausalLM"),
    (kinds.Sft(), Prompt(virtual_tokens=3), "PeftModelForCausalLM"),
    (kinds.Sft(), Full(), "Qwen2ForCausalLM"),
    (kinds.Mlm(), Full(), "BertForMaskedLM"),
    (kinds.Mlm(), Lora(rank=2), "PeftModel"),
    (kinds.Rerank(), Lora(rank=2), "PeftModelForSequenceClassification"),
    (kinds.SpanCorruption(), Full(), "T5ForConditionalGeneration"),
    (kinds.Seq2Seq(), Lora(rank=2), "PeftModelForSeq2SeqLM"),
]


def base_of(objective: kinds.Objective, folder: Path, tiny_model_dir: Callable[..., Path]) -> Path:
    """A small model with random weights that the task can be learned by."""
    if objective.type == "sft":
        return tiny_model_dir()
    if objective.type in ("span_corruption", "seq2seq"):
        words = LINES + [chr(97 + n % 26) * (n % 7 + 1) for n in range(200)]
        size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
        shape = Shape(architecture="t5", vocab_size=300, max_position_embeddings=128, initializer_range=0.2, **size)
        write_encoder(folder, t5_tokenizer(words, 300), shape, seed=1)
        return folder
    return save_encoder(folder, "bert")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("objective", "method", "kind"), OPENED, ids=[f"{task.type}-{way.type}" for task, way, _ in OPENED]
)
def test_the_lines_open_what_was_saved_and_it_predicts_the_same(
    objective: kinds.Objective,
    method: Method,
    kind: str,
    tmp_path: Path,
    tiny_model_dir: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = base_of(objective, tmp_path / "base", tiny_model_dir)
    model = opened(learnable(objective, base), base, method, dropout=False)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    made = tmp_path / "it's"
    methods.save(model, made)
    config = of(objective=objective, method=method, model=ModelConfig(path=str(base)))
    names: dict[str, Any] = {}
    opening = [line for line in python_lines(config, made) if "merge" not in line]
    exec("\n".join(opening), names)
    assert type(names["model"]).__name__ == kind
    assert names["tokenizer"](LINES[0])["input_ids"] == model.tokenizer(LINES[0])["input_ids"]
    if method.type == "prompt":
        return  # what stands before the text is compared in tests/model/test_tuners.py
    inputs = names["tokenizer"](LINES[0], return_tensors="pt")
    if objective.type in ("span_corruption", "seq2seq"):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.no_grad():
        ours, theirs = model.base(**inputs).logits, names["model"].eval()(**inputs).logits
    assert float((ours - theirs).abs().max()) < 1e-5
    merging = python_lines(config, made)[len(opening) :]
    assert bool(merging) == (isinstance(method, Adapting) and method.supports.merging)
    if merging:
        exec("\n".join(merging), names)
        whole = transformers.AutoConfig.from_pretrained("merged").architectures[0]
        with torch.no_grad():
            merged = getattr(transformers, whole).from_pretrained("merged").eval()(**inputs).logits
        assert float((ours - merged).abs().max()) < 1e-4


@pytest.mark.peer
@pytest.mark.parametrize("objective", [kinds.Embed(loss="infonce"), kinds.Rerank()], ids=["embedding", "reranker"])
def test_sentence_transformers_opens_vectors_and_scores(objective: kinds.Objective, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("sentence_transformers")
        base = save_encoder(tmp_path / "base", "bert")
        learned = learnable(objective, base)
        model = opened(learned, base)
        made = tmp_path / "made"
        methods.save(model, made)
        for name, text in learned.files(model).items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)
        names: dict[str, Any] = {}
        exec("\n".join(python_lines(of(objective=objective, method=Full()), made)), names)
        assert type(names["model"]).__name__ == (
            "CrossEncoder" if objective.type == "reranker" else "SentenceTransformer"
        )
