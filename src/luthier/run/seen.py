"""Runs and evaluations as their directories tell, finished or not: nothing is loaded, and nothing is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import orjson

from luthier.base.config import read_yaml
from luthier.base.errors import ConfigError
from luthier.base.rundir import RunDir, run_number
from luthier.evaluate.task import Result
from luthier.run.plots import Rows, curve
from luthier.run.state import Phase, state_of
from luthier.run.trackers import Scalar, flatten
from luthier.run.watch import EVENTS, METRICS

CONFIG, REPORT = "config.yaml", "report.json"


@dataclass(frozen=True)
class Seen:
    """What one run's directory tells."""

    name: str
    path: Path
    state: Phase
    settings: Mapping[str, Scalar]
    """By dotted path."""
    metrics: Rows
    plan: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was about to be trained, as the run said when it began."""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])
    forgotten: Sequence[Mapping[str, Any]] = ()
    scores: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of evaluations that lie inside the run, by data set, subset and metric."""
    tokenizer: str | None = None
    """Hash of the tokenizer it saved."""
    seconds: float | None = None
    """From its beginning to its last word, pauses between resumptions included."""

    @property
    def train(self) -> Rows:
        """Rows of training."""
        return [row for row in self.metrics if "loss" in row and "eval_loss" not in row]

    @property
    def step(self) -> int:
        """Steps taken, as far as they were written down."""
        return max((int(row["step"]) for row in self.metrics if isinstance(row.get("step"), int)), default=0)  # pyright: ignore[reportArgumentType]

    def value(self, key: str) -> float | None:
        """The last value of a metric of training, the best one of an evaluation, or a score of an evaluation inside."""
        if key in self.scores:
            return self.scores[key]
        _, values = curve(self.metrics, key)
        if not values:
            return None
        return values[-1] if not key.startswith("eval_") else (min if lower_is_better(key) else max)(values)


@dataclass(frozen=True)
class Evaluated:
    """What one folder of `luthier eval` tells."""

    name: str
    path: Path
    model: str
    scores: Sequence[Mapping[str, Any]]
    results: Mapping[tuple[str, str], Sequence[Result]]
    """By data set and subset, where the answers are there."""


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is the better one."""
    ending = metric.rsplit("/", 1)[-1].rsplit(" ", 1)[-1].removeprefix("eval_")
    return ending in ("loss", "perplexity", "bits_per_byte", "mse", "mae", "seconds", "memory_gib", "grad_norm") or (
        ending.endswith("_loss")
    )


def found(words: Sequence[str]) -> list[Path]:
    """The folders that are meant: named, matched by a pattern, or somewhere below a named one.

    Raises:
        ConfigError: there is no such folder, or nothing in it that could be compared.
    """
    places: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        pattern = not path.exists() and has_magic(word)
        # The pattern may begin at the root, which Path.glob does not take.
        matches = [Path(match) for match in sorted(glob(str(path)))] if pattern else [path]  # noqa: PTH207
        if not any(match.exists() for match in matches):
            raise ConfigError("nothing is there", where=word, code="no_run", fix="Give the directories of runs")
        inside = [place for match in matches if match.is_dir() for place in _below(match, 3)]
        if not inside:
            raise ConfigError(
                "holds neither a run nor results of luthier eval",
                where=word,
                code="no_run",
                fix=f"A run's directory has a {CONFIG}, results have a {REPORT}",
            )
        places += inside
    return list(dict.fromkeys(place.resolve() for place in places))


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder) or is_evaluation(folder):
        yield folder
        return
    if depth:
        for child in sorted(folder.iterdir(), key=lambda path: (run_number(path) or 0, path.name)):
            if child.is_dir() and not child.name.startswith("."):
                yield from _below(child, depth - 1)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of one run; a sequence of stages holds several."""
    return (folder / CONFIG).is_file() and (folder / EVENTS).exists() | (folder / METRICS).exists() | (
        folder / "env.json"
    ).exists()


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds what `luthier eval` writes."""
    return (folder / REPORT).is_file() and not (folder / CONFIG).exists()


def names(paths: Sequence[Path]) -> list[str]:
    """As short as they can be while they differ."""
    if len(paths) == 1:
        return [paths[0].name]
    split = [path.parts for path in paths]
    shared = 0
    while all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    return ["/".join(parts[shared:]) for parts in split]


def read_run(path: Path, name: str) -> Seen:
    """Everything a run has written down so far.

    Raises:
        ConfigError: a file that was written whole cannot be read.
    """
    directory = RunDir(path)
    settings = flatten(read_yaml(path / CONFIG))
    events, metrics = directory.read_rows(EVENTS), directory.read_rows(METRICS)
    told = [data for row in events if isinstance(data := row.get("data"), dict)]
    plan = next((data for data in reversed(told) if data.get("event") == "started"), {})
    times = [float(row["created_at"]) for row in events if isinstance(row.get("created_at"), int | float)]  # pyright: ignore[reportArgumentType]
    return Seen(
        name=name,
        path=path,
        state=state_of(path).phase,
        settings=settings,
        metrics=metrics,
        plan=plan,
        data=read_json(path / "data_report.json"),
        environment=read_json(path / "env.json"),
        memory=read_json(path / "memory.json"),
        forgotten=read_json(path / "forgetting.json").get("changes", []),
        scores={key: value for file in sorted(path.glob("eval*/**/report.json")) for key, value in _scores(file)},
        tokenizer=_tokenizer(path),
        seconds=times[-1] - times[0] if len(times) > 1 else None,
    )


def read_evaluation(path: Path, name: str) -> Evaluated:
    """The scores of an evaluation, and the answers they were made of.

    Raises:
        ConfigError: it cannot be read.
    """
    report = read_json(path / REPORT)
    scores = report.get("scores")
    if not isinstance(scores, list):
        raise ConfigError("is no report of luthier eval: it has no scores", where=str(path / REPORT), code="broken_run")
    results: dict[tuple[str, str], Sequence[Result]] = {}
    for dataset, subset in dict.fromkeys((str(row["dataset"]), str(row["subset"])) for row in scores):
        file = path / "items" / Path(dataset).name / f"{subset}.jsonl"
        if file.exists():
            results[dataset, subset] = _results(file)
    return Evaluated(name, path, str(report.get("model", name)), scores, results)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file.  Raises ConfigError."""
    if not path.exists():
        return {}
    try:
        value: Any = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(
            f"cannot be read: {error}", where=str(path), code="broken_run", fix="Leave this run out, or mend the file"
        ) from error
    if not isinstance(value, dict):
        raise ConfigError("is not a JSON object", where=str(path), code="broken_run", fix="Leave this run out")
    return value


def _results(file: Path) -> list[Result]:
    rows: dict[str, Result] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        try:
            result = Result.of(orjson.loads(line))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            if number == 1:
                raise ConfigError("holds no results", where=f"{file}:1", code="broken_run") from None
            continue  # cut off by a crash; the evaluation would answer it anew
        rows[result.key] = result
    return list(rows.values())


def _scores(file: Path) -> Iterator[tuple[str, float]]:
    for row in read_json(file).get("scores", []):
        if isinstance(row.get("score"), int | float):
            yield f"{Path(str(row['dataset'])).name} {row['subset']} {row['metric']}", float(row["score"])


def _tokenizer(path: Path) -> str | None:
    for file in sorted(path.glob("checkpoints/step-*/tokenizer.json"), reverse=True):
        return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()
    return None
