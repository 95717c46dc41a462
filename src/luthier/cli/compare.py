"""`luthier compare`: runs side by side, from what their directories tell."""

from __future__ import annotations

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.errors import ConfigError


class CompareConfig(Config):
    """What is compared, and how it is sorted."""

    runs: tuple[Named, ...] = ()
    """Directories of runs or of results of luthier eval; patterns; or directories that hold such."""
    by: str | None = None
    """Metric that says which is best: loss, eval_loss, any eval_*, or a score of an evaluation. Unset: eval_loss where
    there is one, else loss."""
    output_dir: Named | None = None
    """Folder for comparison.md, .json and .html with the curves in one picture. Unset: nothing is written."""


def compare(options: CompareConfig, console: Console) -> None:
    """Print what differs, how they went and what to be careful about; write it down where that is asked for.

    Raises:
        ConfigError: nothing to compare, runs beside evaluations, or a file that cannot be read.
    """
    if not options.runs:
        raise ConfigError(
            "no runs were named", where="luthier compare", code="bad_usage", fix="luthier compare RUN RUN [RUN ...]"
        )
    from pathlib import Path

    from luthier.run import compare as comparing
    from luthier.run import comparison, seen

    places = seen.found(options.runs)
    named = seen.names(places)
    runs = [place for place in places if seen.is_run(place)]
    if runs and len(runs) < len(places):
        raise ConfigError(
            "runs and results of evaluations are compared apart",
            where=" ".join(options.runs),
            code="bad_usage",
            fix="Name the ones or the others",
        )
    if len(places) < 2:
        raise ConfigError(
            "there is only one to compare",
            where=str(places[0]),
            code="bad_usage",
            fix="Name at least two, or a folder of them",
        )
    pairs = list(zip(places, named, strict=True))
    if runs:
        found = comparing.compare([seen.read_run(place, name) for place, name in pairs], options.by)
    else:
        found = comparing.compare_evaluations([seen.read_evaluation(place, name) for place, name in pairs], options.by)
    if console.json:
        console.result("", **comparison.to_json(found))
    else:
        for title, rows in comparison.tables(found).items():
            console.table(title, rows, result=True)
        for warning in found.warnings:
            console.warn(warning)
    if options.output_dir:
        for file in comparison.write(found, Path(options.output_dir).expanduser()):
            console.say(f"Written: {file}")
