"""Against forgetting, in a run: what is added to the objective, and the general sets that tell what was forgotten."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier.base.errors import DataError
from luthier.data.dataset import prepare
from luthier.data.encode import Encoding
from luthier.data.tokens import Groups
from luthier.engine.ema import Ema
from luthier.engine.objective import Objective
from luthier.evaluate.forgetting import Change, Scores, changes, judge
from luthier.model.load import Model
from luthier.model.turns import ModelTurns
from luthier.objectives.config import Retain
from luthier.objectives.elastic import ewc, fisher_information, keep_fisher, kept_fisher, l2sp
from luthier.objectives.like_start import Anchor, LikeStart
from luthier.objectives.penalised import Penalised, Penalty
from luthier.objectives.start import Start
from luthier.run.parts import Run

FILE, FISHER = "forgetting.json", "fisher.safetensors"


def general_sets(run: Run, encoding: Encoding) -> dict[str, Groups]:
    """The general sets, each encoded as the training data is.  Processes take turns."""
    with run.mesh.leader_first():
        return {name: _general(run, encoding, name) for name in run.config.retain.general}


def _general(run: Run, encoding: Encoding, name: str) -> Groups:
    plain = {"validation": (), "replay": (), "split_ratio": 0.0, "interleave": (), "streaming": False}
    config = run.config.data.model_copy(update={**plain, "datasets": (name,)})
    prepared = prepare(config, encoding, template_note=None, seed=run.config.seed, progress=lambda _: None)
    if not len(prepared.train):
        rejected = prepared.rejected
        first = f"; first {rejected[0]['file']}:{rejected[0]['line']}: {rejected[0]['message']}" if rejected else ""
        raise DataError(f"no row of this general set can be used{first}", where=name, code="no_rows")
    return prepared.train


def retained(
    run: Run, model: Model, objective: Objective, turns: ModelTurns, general: Mapping[str, Groups]
) -> Objective:
    """The objective with all that the settings and the method add to it; itself where that is nothing.

    To be called while the model is as it starts.
    """
    settings = run.config.retain
    penalties: dict[str, Penalty] = {}
    if turns.ranks is not None:
        penalties["orthogonal"] = turns.ranks.penalty
    if settings.on:
        bare = not run.config.model.adapters
        start = Start(model, bare=bare)
        if settings.l2sp:
            penalties["l2sp"] = partial(l2sp, model, start, settings.l2sp)
        if settings.ewc:
            fisher = _fisher(run, model, objective, settings, general)
            penalties["ewc"] = partial(ewc, model, start, fisher, settings.ewc)
        anchors = [Anchor("kl", settings.kl)] if settings.kl else []
        if settings.lwf:
            anchors.append(Anchor("lwf", settings.lwf, temperature=settings.lwf_temperature, everywhere=True))
        if anchors:
            objective = LikeStart(objective, start, anchors)
    return Penalised(objective, penalties) if penalties else objective


def _fisher(
    run: Run, model: Model, objective: Objective, settings: Retain, general: Mapping[str, Groups]
) -> dict[str, Tensor]:
    """The information, found out or read back; every process finds the same."""
    file = run.directory.path / FISHER
    found = kept_fisher(file)
    if found is None:
        each = max(1, settings.ewc_samples // len(general))
        groups = [part[index] for part in general.values() for index in range(min(each, len(part)))]
        run.console.say(f"Weighing what must not be forgotten on {len(groups)} samples (EWC)")
        found = fisher_information(model, objective, groups)
        if run.mesh.leads:
            keep_fisher(file, found)
    return {name: value.to(model.device) for name, value in found.items()}


def rows(found: list[Change]) -> list[dict[str, str]]:
    """Changes as a table for people."""
    return [
        {
            "set": Path(change.set).name,
            "metric": change.metric.replace("_", " "),
            "before": f"{change.before:.4g}",
            "after": f"{change.after:.4g}",
            "change": f"{change.difference:+.4g}",
        }
        for change in found
    ]


class Forgetting:
    """The report on general sets: judged before the first step, judged again at the end."""

    def __init__(self, run: Run, model: Model, objective: Objective, general: Mapping[str, Groups]):
        self._run, self._model, self._objective, self._general = run, model, objective, general
        self._before: dict[str, Scores] = {}

    def begin(self) -> None:
        """Judge, unless a resumed run has been judged at its beginning."""
        file = self._run.directory.path / FILE
        if self._general:
            known = file.exists()
            self._before = json.loads(file.read_text("utf-8"))["before"] if known else self._judge()
            self._write({})

    def end(self, ema: Ema) -> None:
        """Judge again what is saved, write forgetting.json and say what changed."""
        if not self._general:
            return
        with ema.in_use():
            after = self._judge()
        self._write(after)
        self._run.console.table("General sets, before and after", rows(changes(self._before, after)))

    def _judge(self) -> dict[str, Scores]:
        run = self._run
        share = run.share(run.config.eval.micro_batch or run.config.train.micro_batch, self._model)
        return judge(self._model, self._objective, self._general, share, run.mesh)

    def _write(self, after: dict[str, Scores]) -> None:
        if self._run.mesh.leads:
            told = [asdict(change) for change in changes(self._before, after)]
            method = self._run.config.method.type
            found: dict[str, Any] = {"method": method, "before": self._before, "after": after, "changes": told}
            self._run.directory.write_json(FILE, found)
