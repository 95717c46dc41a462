"""`luthier eval`: how well a model does on data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.base.console import Console
from luthier.evaluate.config import EvalConfig

if TYPE_CHECKING:
    from luthier.run.evaluation import Evaluated


def evaluate(options: EvalConfig, console: Console) -> None:
    """Evaluate, and print the table.

    Raises:
        ConfigError, ModelError, DataError: naming the flag, file or row.
        Stopped: asked to stop; the same command goes on.
    """
    # A page of help must not wait for torch.
    if options.eval_backend == "lm_eval":
        from luthier.run.harness import run_harness

        _show(run_harness(options, console), options, console)
    else:
        from luthier.run.evaluation import evaluate

        _show(evaluate(options, console), options, console)


def _show(evaluated: Evaluated, options: EvalConfig, console: Console) -> None:
    from luthier.evaluate.report import change_table, table

    measured = evaluated.measured
    console.table("Results", table(measured), result=True)
    if evaluated.changes:
        console.table(f"Against {options.compare}", change_table(evaluated.changes), result=True)
    if measured.caution:
        console.warn(measured.caution)
    where = str(evaluated.folder)
    console.result(f"Every answer, report.md and pictures: {where}", folder=where)
