"""What a run's directory tells for a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from luthier import __version__
from luthier.base.rundir import RunDir
from luthier.export.card import CardFacts, public_name
from luthier.model.config import Lora
from luthier.run.config import RunConfig

_CAREFUL = "## What to be careful about"


def card_facts(
    title: str, base: str, kind: str, made: str, usage: str, trained: RunConfig | None, checkpoint: Path | None
) -> CardFacts:
    """Everything known about a model that was made of `checkpoint`."""
    run = checkpoint.parent.parent if checkpoint is not None and checkpoint.parent.name == "checkpoints" else None
    return CardFacts(
        title=title,
        base=public_name(base),
        made=made,
        kind=kind,
        data=_data(run),
        recipe={} if trained is None else _recipe(trained),
        scores=[] if run is None else _scores(RunDir(run)),
        cautions=[] if run is None else _cautions(run / "report.md"),
        system=None if trained is None else trained.data.system,
        usage=usage,
        version=__version__,
    )


def _data(run: Path | None) -> list[Mapping[str, object]]:
    file = None if run is None else run / "data_report.json"
    if file is None or not file.exists():
        return []
    report: dict[str, Any] = orjson.loads(file.read_bytes())
    return [
        {
            "set": public_name(str(part["name"])),
            "used for": part["use"],
            "rows": part["kept"],
            "tokens": part["tokens"],
            "trained tokens": part["trained_tokens"],
        }
        for part in report["sets"]
    ]


def _recipe(config: RunConfig) -> dict[str, object]:
    method = config.method
    recipe: dict[str, object] = {"task": config.objective.type, "method": method.type}
    if isinstance(method, Lora):
        recipe |= {"rank": method.rank, "alpha": f"{method.alpha:g}"}
    if config.model.quant.on:
        recipe["base held in"] = f"{config.model.quant.bits} bits ({config.model.quant.method})"
    length = {"epochs": f"{config.train.epochs:g}"} if config.train.max_steps is None else {}
    length |= {"steps": config.train.max_steps} if config.train.max_steps is not None else {}
    return {
        **recipe,
        **length,
        "samples a step": config.train.micro_batch * config.train.accumulation,
        "optimizer": config.optim.name,
        "learning rate": f"{config.optim.learning_rate or 0:g}, {config.optim.schedule}",
        "longest sample": config.data.max_length,
        "seed": config.seed,
    }


def _scores(run: RunDir) -> list[Mapping[str, object]]:
    """The first and last evaluation, or the training loss where there was none."""
    rows = run.read_rows("metrics.jsonl")
    judged = [row for row in rows if "eval_loss" in row]
    chosen = judged or [row for row in rows if "loss" in row]
    names = ("eval_loss", "eval_token_accuracy") if judged else ("loss", "token_accuracy")
    if not chosen:
        return []
    first, last = chosen[0], chosen[-1]
    return [
        {
            "measure": name.replace("eval_", "evaluation ").replace("_", " "),
            f"step {first.get('step')}": f"{first[name]:.4f}",
            f"last, step {last.get('step')}": f"{last[name]:.4f}",
        }
        for name in names
        if isinstance(first.get(name), float) and isinstance(last.get(name), float)
    ]


def _cautions(report: Path) -> list[str]:
    if not report.exists():
        return []
    section = report.read_text(encoding="utf-8").partition(_CAREFUL)[2].partition("\n## ")[0]
    return [line.removeprefix("- ") for line in section.splitlines() if line.startswith("- ")]
