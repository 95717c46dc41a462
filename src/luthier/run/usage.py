"""How to use what a run made: commands of ours, and lines of Python without us."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from luthier.base.records import Json
from luthier.model.method import Adapting
from luthier.objectives.config import Distill, Multi
from luthier.run.config import RunConfig, alone

AUTO = {
    "seq_cls": "AutoModelForSequenceClassification",
    "reranker": "AutoModelForSequenceClassification",
    "token_cls": "AutoModelForTokenClassification",
    "mlm": "AutoModelForMaskedLM",
    "span_corruption": "AutoModelForSeq2SeqLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}
"""What opens a model that was trained for another task than language modelling."""
SENTENCES = {"embedding": "SentenceTransformer", "reranker": "CrossEncoder"}
"""What of sentence-transformers opens the results of tasks that it makes vectors or scores of."""
_SERVED = {
    "embedding": "vectors (/v1/embeddings)",
    "reranker": "scores (/v1/rerank)",
    "generative_reranker": "scores (/v1/rerank)",
}
"""What a server gives of models that neither talk nor classify."""
HEADS = "heads"
"""Where the models of several tasks lie in a checkpoint."""
STAGES = "stages.json"
"""What is finished of a sequence of stages, in its directory."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended."""

    reason: str
    """In the engine's words: finished, early_stopped, or the signal that stopped it; `failed` for an error."""
    step: int
    """Optimizer steps taken, over all resumptions."""
    seconds: float
    """Wall time of this process, in seconds."""
    checkpoint: Path | None
    """The last verified checkpoint."""
    best: Path | None
    """The checkpoint with the best evaluation."""
    message: str = ""
    """What an error said."""

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to resume."""
        return self.reason in ("finished", "early_stopped")


def python_lines(config: RunConfig, checkpoint: Path, task: str = "") -> list[str]:
    """A checkpoint opened by plain transformers (and peft), an adapter also merged into its base.

    Args:
        task: which of several the model is opened for.
    """
    if task:
        config, checkpoint = alone(config, task), checkpoint / HEADS / task
    folder, kind = repr(str(checkpoint)), config.objective.type
    adapter = isinstance(config.method, Adapting)
    if (name := SENTENCES.get(kind)) and not (adapter and kind == "reranker"):
        return [f"from sentence_transformers import {name}", f"model = {name}({folder})"]
    auto = AUTO.get(kind, "AutoModelForCausalLM")
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({folder})"
    if not adapter:
        return [
            f"from transformers import {auto}, AutoTokenizer",
            f"model = {auto}.from_pretrained({folder})",
            tokenizer,
        ]
    if kind == "mlm":  # PEFT has no class of its own for these
        base = f"{auto}.from_pretrained({config.model.path!r})"
        lines = [
            "from peft import PeftModel",
            f"from transformers import {auto}, AutoTokenizer",
            f"model = PeftModel.from_pretrained({base}, {folder})",
            tokenizer,
        ]
    else:
        peft = auto.replace("AutoModel", "AutoPeftModel")
        # The base does not know how many classes the adapter's head has.
        count = len(_labels(checkpoint))
        labels = f", num_labels={count}" if count else ""
        lines = [
            f"from peft import {peft}",
            "from transformers import AutoTokenizer",
            f"model = {peft}.from_pretrained({folder}{labels})",
            tokenizer,
        ]
    if not config.method.supports.merging:
        return lines
    return [
        *lines,
        'model.merge_and_unload().save_pretrained("merged")  # one plain model, the adapter inside',
        'tokenizer.save_pretrained("merged")',
    ]


def _labels(checkpoint: Path) -> Mapping[str, Json]:
    file = checkpoint / "labels.json"
    stored: dict[str, Json] = orjson.loads(file.read_bytes()) if file.exists() else {}
    named = stored.get("id2label")
    return named if isinstance(named, dict) else {}


def usage(run: Path, config: RunConfig, ending: Ending) -> dict[str, str]:
    """What can be done with a run now: a title and the exact command each."""
    commands: dict[str, str] = {}
    if not ending.complete:
        commands["Go on where it stopped"] = shlex.join(
            ["luthier", "train", str(run / "config.yaml"), "--resume_from_checkpoint", str(run)]
        )
    checkpoint = ending.best or ending.checkpoint
    if checkpoint is None:
        return commands
    if isinstance(config.objective, Multi):
        for task in config.objective.tasks:
            place = checkpoint / HEADS / task
            commands |= {f"{title}: {task}": command for title, command in _uses(alone(config, task), place).items()}
        return commands
    return commands | _uses(config, checkpoint)


def _uses(config: RunConfig, checkpoint: Path) -> dict[str, str]:
    """What can be done with what one task has made."""
    commands: dict[str, str] = {}
    adapter = isinstance(config.method, Adapting)
    flag = "--adapters" if adapter else "--model"
    kind = config.objective.type
    if kind in ("sft", "pretrain", "distill"):
        commands["Talk to it"] = shlex.join(["luthier", "infer", flag, str(checkpoint)])
    elif kind in ("seq_cls", "token_cls", "seq2seq"):
        use = shlex.join(["luthier", "infer", flag, str(checkpoint)])
        title = "Let it write for a file" if kind == "seq2seq" else "Classify a file"
        commands[title] = f"{use} --val_dataset ROWS.jsonl --result_path predicted.jsonl"
    elif kind in _SERVED:
        commands[f"Serve its {_SERVED[kind]}"] = shlex.join(["luthier", "deploy", flag, str(checkpoint)])
    if adapter and not config.method.supports.continues:
        return commands
    base = ["--model", config.model.path, "--adapters", str(checkpoint)] if adapter else ["--model", str(checkpoint)]
    command = [kind] if kind in ("sft", "pretrain") else ["train", "--task_type", kind]
    if isinstance(config.objective, Distill):
        command += ["--teacher", config.objective.teacher]
    teach = ["luthier", *command, *base, *_quant_flags(config), "--train_type", config.method.type]
    commands["Teach it more, from other data"] = f"{shlex.join(teach)} --dataset MORE.jsonl"
    return commands


def _quant_flags(config: RunConfig) -> list[str]:
    """Flags that hold the base as this run did."""
    quant = config.model.quant
    if not quant.on:
        return []
    flags = ["--quant_method", str(quant.method), "--quant_bits", str(quant.bits)]
    for name, value in quant.model_dump(mode="json", exclude_defaults=True, exclude={"method", "bits"}).items():
        flags += [f"--model.quant.{name}", *(value if isinstance(value, list) else [str(value)])]
    return flags
