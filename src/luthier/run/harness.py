"""An evaluation by the tasks of lm-evaluation-harness."""

from __future__ import annotations

from pathlib import Path

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.base.rundir import RunDir
from luthier.evaluate import report
from luthier.evaluate.config import EvalConfig
from luthier.evaluate.harness import run_tasks
from luthier.evaluate.report import Measured
from luthier.evaluate.specialist import Specialist
from luthier.run.evaluation import Evaluated
from luthier.run.result import find
from luthier.run.subject import examined, identity, name_of


def run_harness(options: EvalConfig, console: Console) -> Evaluated:
    """Run tasks of lm-evaluation-harness on a model.

    Raises:
        ConfigError: a setting that the harness does not take, or a task it does not know.
        DataError: a task's data cannot be had.
        MissingExtra: it is not installed.
    """
    if options.eval_url is not None:
        fix = "Use --eval_backend Native, or lm_eval's own command"
        raise ConfigError("lm_eval's tasks ask a model that is opened here", where="--eval_url", fix=fix)
    for name, value in (("--compare", options.compare), ("--dataset_args", options.dataset_args or None)):
        if value is not None:
            raise ConfigError("lm_eval's tasks bring their own settings", where=name, fix="Use --eval_backend Native")
    if not options.eval_dataset:
        raise ConfigError("no task was named", where="--eval_dataset", fix="For example: --eval_dataset hellaswag")
    usable = find(options.model)
    folder = Path(options.output_dir) / f"{name_of(usable)}-{identity(usable)}" / "lm_eval"
    folder.mkdir(parents=True, exist_ok=True)
    with examined(options, options.model, console.say) as subject:
        if isinstance(subject, Specialist):
            raise ConfigError(f"this model {subject.skill.words}, and lm_eval asks models that talk", where="--model")
        found, raw = run_tasks(
            subject,
            list(options.eval_dataset),
            shots=options.few_shot_num or None,
            limit=options.eval_limit,
            further=options.tasks_path,
        )
    measured = Measured(subject.name, {}, (), tuple(found))
    settings: dict[str, Json] = options.model_dump(mode="json")
    kept = RunDir(folder)
    kept.write_json("report.json", report.as_json(measured, (), settings) | {"lm_eval": raw})
    kept.write_text("report.md", report.as_markdown(measured, (), "", ()))
    return Evaluated(measured, (), folder)
