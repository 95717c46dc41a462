"""Which objective a run has, when nobody said: what the rows of its first set, and its model, are evidently for."""

from __future__ import annotations

from typing import Any

from luthier.base.records import Task
from luthier.data.config import DataConfig
from luthier.model.config import ModelConfig
from luthier.objectives.config import Embed, Mlm, Multi, One, Seq2Seq, SeqCls, Sft, SpanCorruption, TokenCls
from luthier.run.absent import lies_here
from luthier.run.config import RunConfig, stage_of

PICKED: dict[Task, type[SeqCls | TokenCls | Embed]] = {
    "classification": SeqCls,
    "tagging": TokenCls,
    "similarity": Embed,
}
"""The objective for rows that are evidently no language modelling; others are told by the data's own checks."""


_SENTINELS = ("t5", "mt5", "umt5", "longt5", "switch_transformers")
"""Model types that learn to write hidden spans."""


def picked(objective: Multi, data: DataConfig, model: ModelConfig) -> Multi:
    """Several tasks, each with the objective that its first rows are for where nobody said another."""
    tasks = {
        name: task.model_copy(
            update={"objective": task.objective or pick(data.model_copy(update={"datasets": task.datasets}), model)}
        )
        for name, task in objective.tasks.items()
    }
    return objective.model_copy(update={"tasks": tasks})


def picked_stages(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The stages, each with the objective that its first rows are for where nobody said another."""
    found: dict[str, dict[str, Any]] = {}
    for name, own in config.stages.items():
        data = stage_of(config, name).data
        known = "objective" in own or not data.datasets
        found[name] = own if known else {**own, "objective": {"type": pick(data, config.model).type}}
    return found


def pick(data: DataConfig, model: ModelConfig, notes: list[str] | None = None) -> One:
    """The objective that the first rows are for; sft where they are not on this machine and the model talks.

    Rows that give nothing away are for what the model can learn from them: an encoder fills gaps in texts, or tells the
    classes in a column that is usually one; of two parts, a decoder answers chats, and T5's writes hidden spans.

    Args:
        notes: gets what somebody should know who meant something else.

    Raises:
        DataError: there is no such file, and the model could not be trained by sft.
    """
    name = data.datasets[0]
    if not lies_here(name):
        if not isinstance(_by_model(model, classes=False, texts=True), Sft):
            from luthier.data.sources import files_of, parse_spec

            spec = parse_spec(name, data.hub)
            if spec.kind == "local":
                files_of(spec)  # says what is missing, before the model is blamed for what cannot be told
        return Sft()
    # Imported here: reading data takes libraries that are slow to import.
    from luthier.data.survey import look

    found = look(data)
    if found.task in PICKED:
        return PICKED[found.task]()
    evident = _by_model(model, classes=found.classes, texts=found.texts)
    if isinstance(evident, Sft) and found.classes and found.texts and notes is not None:
        notes.append("the rows are texts with a class, and the texts are trained; --task_type seq_cls learns the class")
    return evident


def _by_model(model: ModelConfig, *, classes: bool, texts: bool) -> One:
    # Imported here and below: a page of help must not wait for libraries.
    from luthier.model.folder import local_folder, read_json

    folder = local_folder(model.path) if model.path else None
    settings = read_json(folder / "config.json") if folder and (folder / "config.json").exists() else {}
    if not settings or any("CausalLM" in name for name in settings.get("architectures") or ()):
        return Sft()
    from luthier.model.heads import made_for

    match made_for(settings):
        case "masked" if classes:
            return SeqCls()
        case "masked" if texts:
            return Mlm()
        case "seq2seq" if not texts:
            return Seq2Seq()
        case "seq2seq" if settings.get("model_type") in _SENTINELS:
            return SpanCorruption()
        case _:
            return Sft()
