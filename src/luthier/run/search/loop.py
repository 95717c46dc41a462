"""A search over settings: trials that are trainings, proposed by optuna, pruned, counted when they fail, kept on disk.

    <output_dir>/search.yaml       what is searched, a recipe of `luthier search`
    <output_dir>/journal.jsonl     optuna's journal: every trial, its values at each evaluation, how it ended
    <output_dir>/trials/0003/      the third trial, see `run.search.trial`

Nothing is remembered but what lies there: a search that is interrupted goes on with the trials that were under way.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.base.console import Console, Line
from luthier.base.errors import ConfigError, DataError, DoesNotFit, LuthierError, RunError
from luthier.base.signals import stop_requests
from luthier.run.search.space import plain, shown, size, values_of
from luthier.run.search.study import (
    FAULT,
    SAME,
    STEPS,
    distributions,
    load_optuna,
    open_study,
    pruner_of,
    ranked,
    sampler_of,
)
from luthier.run.search.trial import Fault, Start, Training, started
from luthier.run.search.wanted import Wanted, places
from luthier.run.watch import duration

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial, TrialState

_POLL = 0.2  # seconds
_HOPELESS = 3
"""So many trials that fail before any has ended well mean that it is not their settings."""
_REPEATS = 50


@dataclass(slots=True)
class Active:
    """A trial under way."""

    trial: Trial
    training: Training
    device: str | None
    values: dict[str, Any]
    seen: set[int]
    since: float = field(default_factory=time.monotonic)
    pruned: bool = False
    told: str = ""
    best: float | None = None


def search(wanted: Wanted, console: Console, start: Start = started) -> Study:
    """Make trials until there are enough of them, time is up, or someone asks to stop.

    Args:
        start: begins a training; tests give one that only pretends.

    Returns:
        The study.  Trials that were stopped on the way are still running in it.

    Raises:
        LuthierError: no trial can work; the message is that of the first.
    """
    with console.live() as line:
        return _Search(wanted, console, line, start).run()


class _Search:
    def __init__(self, wanted: Wanted, console: Console, line: Line, start: Start):
        self._wanted, self._console, self._line, self._start = wanted, console, line, start
        self._settings = wanted.settings
        self._study = open_study(wanted.folder, wanted.direction)
        self._devices = places(self._settings, wanted.config, os.environ)
        self._study.pruner = pruner_of(self._settings, wanted.config.eval.every)
        self._active: list[Active] = []
        self._failed, self._fault = 0, ""
        self._free = list(self._devices)
        self._deadline = time.monotonic() + self._settings.timeout if self._settings.timeout else math.inf

    def run(self) -> Study:
        waiting = [trial for trial in self._study.trials if not trial.state.is_finished()]
        with stop_requests("stopping the trials under way, to be gone on with") as request:
            try:
                while request.asked is None and time.monotonic() < self._deadline:
                    while self._free and (again := waiting.pop(0) if waiting else None):
                        self._go_on(again)
                    while self._free and self._begin():
                        pass
                    if not self._active:
                        break
                    time.sleep(_POLL)
                    self._look()
            finally:
                self._stop()
        return self._study

    def _go_on(self, left: FrozenTrial) -> None:
        """Take up a trial that an earlier process has begun."""
        optuna = load_optuna()
        trial: Trial = optuna.trial.Trial(self._study, left._trial_id)  # pyright: ignore[reportPrivateUsage]
        if set(left.params) != {dimension.path for dimension in self._wanted.dimensions}:  # killed while it was made
            trial.set_user_attr(SAME, None)
            self._tell(trial, optuna.trial.TrialState.FAIL)
            return
        self._launch(trial, self._values(left), set(left.intermediate_values), "goes on")

    def _begin(self) -> bool:
        """Begin the next trial; whether there was one."""
        trials = self._study.trials
        if sum(SAME not in trial.user_attrs for trial in trials) >= self._settings.trials:
            return False
        optuna = load_optuna()
        state = optuna.trial.TrialState
        whole = size(self._wanted.dimensions)
        for _ in range(_REPEATS):
            trials = self._study.trials
            tried = {repr(self._values(trial)): trial for trial in trials if SAME not in trial.user_attrs}
            if whole is not None and len(tried) >= whole:
                self._console.say(f"Every combination has been tried: {len(tried)}")
                return False
            several = len(self._devices) > 1
            self._study.sampler = sampler_of(
                self._settings, self._wanted.dimensions, self._wanted.seed, len(trials), several=several
            )
            trial: Trial = self._study.ask(distributions(self._wanted.dimensions))
            values = values_of(self._wanted.dimensions, trial.params)
            twin = tried.get(repr(values))
            if twin is None or (twin.state == state.FAIL):
                self._launch(trial, values, set(), "begins")
                return True
            # The same settings give the same result: it is told again, for the sampler, and not trained again.
            trial.set_user_attr(SAME, twin.number)
            for step, value in twin.intermediate_values.items():
                trial.report(value, step)
            known = twin.state if twin.state.is_finished() else state.FAIL
            self._tell(trial, known, twin.value if known == state.COMPLETE else None)
        self._console.say(f"{_REPEATS} proposals in a row had been tried before: nothing new to try")
        return False

    def _tell(self, trial: Trial, state: TrialState, value: float | None = None) -> None:
        # optuna's grid would end a loop of optuna's own, which there is none of.
        self._study.sampler = load_optuna().samplers.RandomSampler()
        self._study.tell(trial, value, state=state)

    def _values(self, trial: FrozenTrial) -> dict[str, Any]:
        return values_of(self._wanted.dimensions, trial.params)

    def _launch(self, trial: Trial, values: dict[str, Any], seen: set[int], verb: str) -> None:
        device = self._free.pop(0)
        environment = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        if len(self._devices) > 1 and device is None and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // len(self._devices)))
        folder = self._wanted.trial_folder(trial.number)
        training = self._start(self._wanted.config_of(values, folder), folder, environment)
        active = Active(trial, training, device, values, seen)
        self._active.append(active)
        if self._settings.pruning != "off" and seen and trial.should_prune():
            self._prune(active)
        self._console.say(f"Trial {trial.number + 1} {verb}: {shown(values)}", style="dim")

    def _look(self) -> None:
        """See how far the trials are, and tell of those that have ended."""
        for active in list(self._active):
            code = active.training.ended()
            self._read(active)
            if code is not None:
                self._active.remove(active)
                self._free.append(active.device)
                self._end(active, code)
        self._line.update("  ".join(active.told for active in self._active))

    def _read(self, active: Active) -> None:
        total, at, loss = None, 0, None
        for row in active.training.rows():
            step, key = row.get("step"), f"eval_{self._wanted.metric}"
            total, loss = row.get("total_steps", total), row.get("loss", loss)
            at = step if isinstance(step, int) else at
            if not isinstance(step, int) or step == 0 or key not in row:
                continue
            value = row[key]
            if not isinstance(value, int | float) or not math.isfinite(value):
                continue
            if row.get("best"):
                active.best = float(value)
            if step in active.seen or active.pruned:
                continue
            active.seen.add(step)
            active.trial.report(float(value), step)
            # Only rows decide, never when they were read: the same search prunes the same trials.
            if self._settings.pruning != "off" and step != total and active.trial.should_prune():
                self._prune(active)
        words = [f"trial {active.trial.number + 1}/{self._settings.trials}", f"step {at}/{total or '?'}"]
        words += [f"loss {loss:.4f}"] if isinstance(loss, float) else []
        words += [f"best {active.best:.4g}"] if active.best is not None else []
        active.told = " ".join(words)

    def _prune(self, active: Active) -> None:
        active.pruned = True
        active.training.stop()

    def _end(self, active: Active, code: int) -> None:
        """Tell the study how a trial has ended."""
        state = load_optuna().trial.TrialState
        active.trial.set_user_attr(STEPS, max(active.seen, default=0))
        active.trial.set_user_attr("seconds", round(time.monotonic() - active.since, 1))
        name = f"Trial {active.trial.number + 1}"
        if active.pruned:
            self._tell(active.trial, state.PRUNED)
            self._say(active, f"{name}: pruned at step {max(active.seen)}", "pruned", active.best)
        elif code == 0 and active.best is not None:
            self._tell(active.trial, state.COMPLETE, active.best)
            best = self._study.best_trial.number == active.trial.number
            note = ", the best so far" if best else ""
            self._say(active, f"{name}: {self._settings.metric} {active.best:.5g}{note}", "complete", active.best)
            if len(active.seen) == 1 and self._settings.pruning != "off":
                self._console.warn("trials are evaluated once, at their end, so none can be pruned: lower --eval_steps")
        else:
            fault = active.training.fault() if code else Fault(f"{self._settings.metric} was never a number", 1)
            self._refuse_hopeless(active, fault)
            active.trial.set_user_attr(FAULT, fault.text)
            self._tell(active.trial, state.FAIL)
            self._say(active, f"{name} failed: {fault.text}", "failed", None)
            self._failed += 1
            if self._failed >= _HOPELESS and not self._good():
                raise _error(fault, f"the first {self._failed} trials all failed, the last one so: {fault.text}")
        self._tidy()

    def _refuse_hopeless(self, active: Active, fault: Fault) -> None:
        """End the search, and forget the trial, when other values would fail alike: it is not what is tried.

        Raises:
            LuthierError: the trial's own.
        """
        refused = fault.exit_code in (ConfigError.exit_code, DataError.exit_code)
        tried = any(
            each.path.startswith(("data.", "model.", "objective.", "method.")) for each in self._wanted.dimensions
        )
        alike = not tried or fault.text == self._fault
        self._fault = fault.text
        if fault.code == "unknown_metric" or (refused and alike and not self._good()):
            self._tell(active.trial, load_optuna().trial.TrialState.FAIL)
            raise _error(fault, fault.text)

    def _good(self) -> bool:
        """Whether any trial has ended well."""
        return any(trial.state.name in ("COMPLETE", "PRUNED") for trial in self._study.trials)

    def _say(self, active: Active, text: str, state: str, value: float | None) -> None:
        took = duration(time.monotonic() - active.since)
        if self._console.json:
            number = active.trial.number + 1
            settings = {path: plain(value) for path, value in active.values.items()}
            self._console.emit("trial", number=number, state=state, value=value, settings=settings, message=text)
        else:
            self._console.say(f"{text}  ({shown(active.values)}; {took})")

    def _tidy(self) -> None:
        """Keep the checkpoints of the best trials, and of those under way."""
        kept = {trial.number for trial in ranked(self._study)[: self._settings.keep]}
        kept |= {active.trial.number for active in self._active}
        for trial in self._study.trials:
            if trial.state.is_finished() and trial.number not in kept:
                for folder in self._wanted.trial_folder(trial.number).glob("v*/checkpoints"):
                    shutil.rmtree(folder, ignore_errors=True)

    def _stop(self) -> None:
        """Ask what is under way to save and end; its trials stay open in the journal."""
        for active in self._active:
            active.training.stop()
        for active in self._active:
            while active.training.ended() is None:
                time.sleep(_POLL)


def _error(fault: Fault, what: str) -> LuthierError:
    kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, DoesNotFit)}
    return kinds.get(fault.exit_code, RunError)(what, code=fault.code or None)
