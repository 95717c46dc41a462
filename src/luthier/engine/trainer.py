"""The training loop: steps, logs, evaluations, checkpoints, and what to do when something goes wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from luthier.base.errors import ConfigError, DoesNotFit, RunError
from luthier.base.signals import StopRequest, stop_requests
from luthier.data.batch import Batch
from luthier.data.loader import Cursor, Share, Source, Step, evaluation_batches, load
from luthier.data.tokens import Groups
from luthier.engine.attempt import NoRoom
from luthier.engine.checkpoint import Artefact, Checkpoints, State, Tensors, put, read
from luthier.engine.config import EvalConfig, OptimConfig, SaveConfig, StepConfig
from luthier.engine.ema import Ema
from luthier.engine.guard import Guard
from luthier.engine.log import Log
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective
from luthier.engine.optim import Optimizer, schedule
from luthier.engine.step import Pending, StepResult, Verdict, begin, evaluate
from luthier.engine.watcher import Watcher
from luthier.model.layer import Keep
from luthier.model.lending import lending
from luthier.model.load import Model
from luthier.model.turns import ModelTurns


@dataclass(frozen=True, slots=True)
class Settings:
    """The engine's share of the config."""

    train: StepConfig
    optim: OptimConfig
    eval: EvalConfig
    save: SaveConfig
    log_every: int
    seed: int
    loader_workers: int
    total_steps: int
    keep: Keep


@dataclass(frozen=True, slots=True)
class Data:
    """Where steps come from and what they are judged on."""

    source: Source
    share: Share
    validation: Groups | None
    validation_share: Share
    per_epoch: int | None
    """Samples of one epoch."""


class Trainer:
    """Runs one objective on one model until it is done, stopped, or beyond repair."""

    def __init__(
        self,
        model: Model,
        objective: Objective,
        optimizer: Optimizer,
        data: Data,
        settings: Settings,
        checkpoints: Checkpoints,
        watcher: Watcher,
        mesh: Mesh,
        artefact: Artefact,
        turns: ModelTurns,
    ):
        self.model, self.objective, self.optimizer, self.data = model, objective, optimizer, data
        self.settings, self.checkpoints, self.watcher, self.mesh = settings, checkpoints, watcher, mesh
        self.artefact, self.turns = artefact, turns
        self.state = State()
        self.ema = Ema(model.trained(), settings.train.ema_decay)
        self.saved: Path | None = None
        self.outputs: dict[str, Tensor] = {}
        """What the objective gave out for each row of the validation set when the model was at its best."""
        self._guard = Guard(watcher)
        self._log = Log(
            watcher,
            mesh.device,
            every=settings.log_every,
            total_steps=settings.total_steps,
            rate=lambda step: self._factor(step) * optimizer.peak,
            per_epoch=data.per_epoch,
        )

    def restore(self, checkpoint: Path, approve: Callable[[State], None] | None = None) -> None:
        """Take weights, optimizer and position from a checkpoint, bit for bit; `approve` sees its state first."""
        state, tensors = read(checkpoint)
        if approve is not None:
            approve(state)
        state.too_big = self.state.too_big or state.too_big
        state.too_big_to_judge = self.state.too_big_to_judge or state.too_big_to_judge
        self.state = state
        put(self.model.trained(), tensors.trained)
        self.optimizer.load(tensors.optimizer)
        self.turns.load(tensors.method)
        put(self.ema.weights, tensors.ema or tensors.trained)
        self.saved = checkpoint

    def fit(self) -> str:
        """Train from the current state to the end; returns how it ended: finished, early_stopped, or a signal's name.

        Raises:
            RunError: non-finite losses that one return to a good checkpoint did not cure, a step whose gradients
                are all zero, or a final checkpoint that cannot be written.
        """
        with stop_requests("finishing this step, then saving") as request:
            if self.state.step == 0:
                self._evaluate()
            reason = self._ended()
            while reason is None:
                with closing(self._steps()) as steps:
                    try:
                        reason = self._run(steps, request)
                    finally:
                        self._log.tell(self.state)
            self._save(final=True)
        return reason

    def _ended(self) -> str | None:
        """Why nothing is left to do, where that is so."""
        if self.state.step >= self.settings.total_steps:
            return "finished"
        patience = self.settings.eval.patience
        return "early_stopped" if patience is not None and self.state.stale >= patience else None

    def _steps(self) -> Generator[Step]:
        cursor = Cursor(self.state.epoch, self.state.consumed)
        share = self.data.share.halved(where=self.state.too_big)
        return load(self.data.source, cursor, share, self.settings.loader_workers)

    def _run(self, steps: Iterator[Step], request: StopRequest) -> str | None:
        """Steps until there is a reason to end; None asks for another run from the restored state."""
        self.model.train_mode(self.settings.keep)
        self._log.pause()
        coming = self._fetch(steps)
        while (reason := self._ended()) is None:
            step, batches = coming
            pending = self._begin(batches)
            self._log.tell(self.state)  # of the step before, while the device computes this one
            if self.state.step + 1 < self.settings.total_steps:
                coming = self._fetch(steps)  # while the device computes
            # Where the device itself can tell whether to move, it need not wait for the host to say so.
            ahead = self.optimizer.can_hold_still and not pending.attempt.failed
            if ahead:
                self._move(unless=pending.unsound)
            try:
                result = pending.read()
            except NoRoom as full:
                what = f"step {self.state.step + 1}"
                self.state.too_big = self._halved(self.data.share, self.state.too_big, what, full)
                return None
            sound = self._guard.sound(self.state.step + 1, result)
            self.state.skipped = 0 if sound else self.state.skipped + 1
            if self.state.skipped >= self.settings.train.skip_limit:
                self._go_back()
                return None
            if sound and result.trained > 0:
                if not ahead:
                    self._move()
                self.turns.after(self.state.step)
                self.ema.update()
            self._advance(step, result)
            self._log.note(result, sound=sound)
            if sound:
                self._guard.look(self.state.step, result, step.draw.samples)
            if self._due(self.settings.eval.every) or self.state.step == self.settings.total_steps:
                self._evaluate()
            if self._due(self.settings.save.every) and self.state.skipped == 0:
                self._save()
            if self.mesh.any(request.asked is not None) and self._ended() is None:
                self._log.tell(self.state)
                self.watcher.event("stopping", f"{request.asked or 'another process'}: saving and stopping")
                return request.asked or "SIGTERM"
        return reason

    def _fetch(self, steps: Iterator[Step]) -> tuple[Step, list[Batch]]:
        """The next step, and its micro-batches on the device."""
        step = next(steps)
        return step, [batch.to(self.mesh.device) for batch in step.batches]

    def _begin(self, batches: Sequence[Batch]) -> Pending:
        # Every random number of a step is a function of (seed, step, rank), so a resumed step repeats itself.
        self.mesh.seed((self.settings.seed * 1_000_003 + self.state.step) * 1_009 + self.mesh.rank)
        self.optimizer.zero_grad()
        if self.turns.before(self.state.step):
            self.optimizer.forget_resting()
        return begin(self.model, self.objective, batches, self.mesh, max_norm=self.settings.optim.max_grad_norm)

    def _move(self, *, unless: Tensor | None = None) -> None:
        self.optimizer.step(self._factor(self.state.step), unless=unless)

    def _factor(self, step: int) -> float:
        """On the peak learning rate, at a 0-based step."""
        return schedule(self.settings.optim, step, self.settings.total_steps)

    def _go_back(self) -> None:
        """Return to the last good checkpoint, once.

        Raises:
            RunError: `non_finite_loss`, the second time or when there is no checkpoint.
        """
        good: Path | None = None
        if self.mesh.leads and not self.state.rolled_back:
            good = self.checkpoints.latest(lambda fault: self.watcher.event("corrupt_checkpoint", fault, level="warn"))
        found = self.mesh.share(str(good or ""))
        if not found:
            how = "again" if self.state.rolled_back else "and there is no checkpoint to go back to"
            raise RunError(
                f"step {self.state.step}: the loss is not finite {how}",
                code="non_finite_loss",
                fix="Lower the learning rate, or look at the samples named in events.jsonl",
            )
        self.restore(Path(found))
        self.state.rolled_back = True
        self.watcher.event("rolled_back", f"Back to step {self.state.step}: the loss was not finite", level="warn")

    def _advance(self, step: Step, result: StepResult) -> None:
        self.state.step += 1
        self.state.epoch, self.state.consumed = step.draw.next.epoch, step.draw.next.consumed
        self.state.tokens += result.tokens
        self.state.trained += result.trained

    def _due(self, every: int | None) -> bool:
        return every is not None and self.state.step % every == 0

    def _evaluate(self) -> None:
        """Judge the (averaged) weights on the validation set, if there is one, and save them if they are the best."""
        if self.data.validation is None:
            return
        self._log.tell(self.state)
        config, start = self.settings.eval, time.perf_counter()
        self.model.eval_mode()
        with self.ema.in_use():
            verdict = self._judged(self.data.validation)
        self.model.train_mode(self.settings.keep)
        if config.metric not in verdict.metrics:
            raise ConfigError(
                f"there is no metric {config.metric!r}; this objective has {', '.join(verdict.metrics)}",
                where="--metric_for_best_model",
                code="unknown_metric",
            )
        value, trained = verdict.metrics[config.metric], self.state.step > 0
        best = trained and config.better(value, self.state.best)
        self._log.evaluated(self.state, verdict.metrics, time.perf_counter() - start, best=best)
        if best:
            self.outputs = verdict.outputs
            self.state.best, self.state.best_step, self.state.stale = value, self.state.step, 0
            self._save(best=True)
        elif trained:
            self.state.stale += 1

    def _judged(self, validation: Groups) -> Verdict:
        share = self.data.validation_share
        batches = evaluation_batches(validation, share.halved(where=self.state.too_big_to_judge))
        try:
            return evaluate(self.model, self.objective, batches, self.mesh)
        except NoRoom as full:
            before = self.state.too_big_to_judge
            self.state.too_big_to_judge = self._halved(share, before, f"the evaluation at step {self.state.step}", full)
        return self._judged(validation)

    def _halved(self, share: Share, too_big: int | None, what: str, full: NoRoom) -> int:
        """Say that micro-batches of this size are too big, the first time.

        Raises:
            DoesNotFit: half of them are too big as well.
        """
        tokens = share.capacity
        if too_big == tokens:
            raise DoesNotFit(f"{what} does not fit, not even in micro-batches of {tokens // 2:,} tokens ({full})")
        message = (
            f"Out of memory in {what} ({full}): from here on a micro-batch has at most {tokens // 2:,} tokens "
            f"instead of {tokens:,}, and a step has more of them; its samples stay the same"
        )
        self.watcher.event("halved_micro_batch", message, level="warn", step=self.state.step, tokens=tokens // 2)
        return tokens

    def _save(self, *, best: bool = False, final: bool = False) -> None:
        """Write a checkpoint unless this step has one.  A failure ends the run only when it is the final one."""
        self._log.tell(self.state)
        step, path = self.state.step, self.checkpoints.path(self.state.step)
        if self.saved == path:
            return
        error: RunError | None = None
        tensors = Tensors({**self.model.trained()}, self.optimizer.state(), self.ema.weights, self.turns.state())
        spread = [*self.model.network.parameters(), *tensors.optimizer.values(), *tensors.ema.values()]
        with lending(self.mesh, spread) as whole:
            if self.mesh.leads:
                try:
                    self.checkpoints.save(self.state, tensors, self.artefact, best=best, whole=whole)
                except RunError as caught:
                    error = caught
        if error is not None:
            message = f"Checkpoint at step {step} failed: {error}"
            self.watcher.event(error.code, message, level="error", step=step)
        elif self.mesh.leads:
            self.watcher.event("checkpoint", f"Checkpoint {path.name}", step=step, path=str(path))
        if not self.mesh.any(error is not None):
            self.saved = path
        elif final:
            raise error or RunError("the final checkpoint could not be written", code="cannot_write")
        self._log.pause()
