"""One training run: data, objective, model, trainer, fit, report."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from luthier.base.config import to_yaml
from luthier.base.console import Console
from luthier.base.errors import LuthierError, Stopped
from luthier.base.rundir import RunDir
from luthier.engine import optim
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.mesh import Mesh, open_mesh
from luthier.engine.trainer import Trainer
from luthier.model import lowbit, methods
from luthier.model.load import load_tokenizer
from luthier.objectives.registry import whole
from luthier.run.build import build_general, build_model, build_parts, build_trainer, choose_keep, describe
from luthier.run.config import RunConfig
from luthier.run.data import build_data
from luthier.run.diskroom import check_disk
from luthier.run.environment import environment, measured_memory
from luthier.run.findings import Judged, write_findings
from luthier.run.forecast.refusal import refuse_what_cannot_fit
from luthier.run.grow import with_vocabulary
from luthier.run.memory import within_memory
from luthier.run.parts import Run, longest_held
from luthier.run.plan import RunPlan
from luthier.run.report import write_report
from luthier.run.resolve import resolve
from luthier.run.result import followed
from luthier.run.resume import Resume, find_resume, refuse_changes, stored_config
from luthier.run.retain import Forgetting
from luthier.run.trackers import TrackedRun, flatten, start_trackers
from luthier.run.usage import Ending, usage
from luthier.run.watch import Unwatched, Watch, duration


def train(config: RunConfig, console: Console) -> Path:
    """Train as the config says and return the run directory.

    Raises:
        ConfigError, DataError: before the first step.
        DoesNotFit, RunError: training could not go on; what was saved before is intact.
        Stopped: someone asked for it; the run has been saved and can be resumed.
    """
    asked_for = "max_length" in config.data.model_fields_set
    config = resolve(config)
    config = config.model_copy(update={"model": followed(config.model)})
    started = time.monotonic()
    with open_mesh(config.device) as mesh, ExitStack() as stack:
        voice = console if mesh.leads else Console(quiet=True)
        resume = _find(config, voice, mesh)
        config = with_vocabulary(config, mesh, voice)
        tokenizer = load_tokenizer(config.model)
        max_length = longest_held(config, tokenizer)
        if asked_for and max_length < config.data.max_length:  # else rows that are too long are told, if there are any
            voice.warn(f"max_length is {max_length} tokens, the longest the model can hold")
        methods.check_files(config.model)
        lowbit.check(config.model.quant, mesh.device)
        optim.check(config.optim, mesh.device)
        directory = _open(config, resume, mesh)
        stack.callback(directory.close)
        run = Run(config, voice, mesh, directory, max_length)
        parts = build_parts(run, tokenizer)
        refuse_what_cannot_fit(run, tokenizer, parts)
        objective = whole(config.objective, parts)
        data = build_data(run, parts, tokenizer)
        objective.begin([data.train, *([] if data.validation is None else [data.validation])], voice)
        with within_memory(run):
            model, fingerprint = build_model(run, tokenizer, parts)
        watcher = _watch(run, resume, stack) if mesh.leads else Unwatched()
        general = build_general(run, parts)
        choice = choose_keep(run, model, objective, data)
        trainer = build_trainer(run, data, model, parts, objective, watcher, general, choice.keep)
        forgetting = Forgetting(run, model, objective, general)
        with within_memory(run):
            forgetting.begin()
        trainer.state.fingerprints = {
            "data": data.train.fingerprint,
            "model": fingerprint,
            "global_batch": str(run.per_step),
        }
        if resume:
            _restore(trainer, resume, config)
        check_disk(run, model, trainer)
        _write_beginning(run)
        plan = describe(run, data, model, trainer, choice.predicted)

        def finish() -> None:
            if data.validation is not None:
                judged = Judged(data.validation, data.where)
                write_findings(directory, objective, trainer.outputs, judged, tokenizer)

        return _fit(run, trainer, plan, watcher, forgetting, started, finish)


def _find(config: RunConfig, console: Console, mesh: Mesh) -> Resume | None:
    """What to resume, found once and known to every process."""
    found = find_resume(config, console.warn) if mesh.leads else None
    words = mesh.share(f"{found.newest:d}{found.checkpoint}" if found else "")
    return Resume(Path(words[1:]), newest=words[0] == "1") if words else None


def _open(config: RunConfig, resume: Resume | None, mesh: Mesh) -> RunDir:
    """The run's directory: a new one, or the resumed run's own.  Only the leading process locks and writes it."""
    if not mesh.leads:
        return RunDir(Path(mesh.share("")))
    run = RunDir.reopen(resume.run) if resume and resume.newest else RunDir.create(Path(config.output_dir))
    Checkpoints(run.path / "checkpoints", None).clean()
    mesh.share(str(run.path))
    return run


def _restore(trainer: Trainer, resume: Resume, config: RunConfig) -> None:
    now = trainer.state.fingerprints or {}
    stored = stored_config(resume.checkpoint)
    trainer.restore(resume.checkpoint, lambda state: refuse_changes(stored, config, state.fingerprints or {}, now))
    trainer.state.fingerprints = now


def _watch(run: Run, resume: Resume | None, stack: ExitStack) -> Watch:
    config, path = run.config, run.directory.path
    step = int(resume.checkpoint.name.removeprefix("step-")) if resume else 0
    tracked = TrackedRun(
        project=path.parent.name,
        name=config.log.run_name or path.name,
        folder=path,
        settings=flatten(config.model_dump(mode="json")),
        resumed_step=step,
    )
    trackers = start_trackers(config.log.report_to, tracked, run.console.warn)
    return stack.enter_context(Watch(run.directory, run.console, trackers, resumed_step=step))


def _write_beginning(run: Run) -> None:
    if run.mesh.leads:
        run.directory.write_text("config.yaml", to_yaml(run.config))
        run.directory.write_json("env.json", environment(run.config.seed, run.mesh.device))


def _fit(
    run: Run,
    trainer: Trainer,
    plan: RunPlan,
    watcher: Watch | Unwatched,
    forgetting: Forgetting,
    started: float,
    finish: Callable[[], None],
) -> Path:
    """Train, and write down how it went whatever happens."""
    watcher.started(plan)
    reason, message = "failed", ""
    try:
        with within_memory(run):
            reason = trainer.fit()
            if reason in ("finished", "early_stopped"):
                forgetting.end(trainer.ema)
    except LuthierError as error:
        message = str(error)
        watcher.event("failed", message, level="error", code=error.code)
        raise
    finally:
        ending = Ending(
            reason,
            trainer.state.step,
            time.monotonic() - started,
            trainer.saved,
            trainer.checkpoints.named("BEST"),
            message,
        )
        if run.mesh.leads:
            _write_end(run, plan, ending, finish)
    if ending.complete:
        took = duration(ending.seconds)
        watcher.event("finished", f"{reason} after {ending.step} steps in {took}", step=ending.step, reason=reason)
    commands = usage(run.directory.path, run.config, ending)
    for title, command in commands.items():
        run.console.say(f"{title}:\n  {command}")
    if not ending.complete:
        raise Stopped(
            f"stopped by {reason} after step {ending.step}, everything is saved", where=str(run.directory.path)
        )
    return run.directory.path


def _write_end(run: Run, plan: RunPlan, ending: Ending, finish: Callable[[], None]) -> None:
    """The report must not hide how the run ended: what cannot be written is said and left."""
    try:
        finish()
        run.directory.write_json("memory.json", measured_memory(run.mesh.device, plan.predicted_gib))
        report = write_report(run.directory, run.config, plan, ending)
        run.console.say(f"Report: {report}")
    except LuthierError as error:
        run.console.warn(str(error))
