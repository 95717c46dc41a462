"""The logic of a search, with trainings that only pretend."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError, DoesNotFit, LuthierError
from luthier.run.config import RunConfig
from luthier.run.search import loop as room
from luthier.run.search.loop import search
from luthier.run.search.result import commands, found, table, write
from luthier.run.search.space import Choices, Dimension, Range, SearchConfig, check
from luthier.run.search.study import open_study, ranked
from luthier.run.search.trial import Fault
from luthier.run.search.wanted import Wanted, places

RATE = Range("optim.learning_rate", 1e-5, 1e-1, log=True, whole=False)
RANK = Choices("method.rank", (4, 8, 16))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_POLL", 0.0)
    monkeypatch.setattr("os.fsync", lambda _: None)  # these searches need not outlive the machine


def loss(config: RunConfig, step: int) -> float:
    """Best at a rate of 1e-3 and rank 8, falling towards that with the steps."""
    rate = config.optim.learning_rate or 0.0
    return 1.0 + abs(math.log10(rate) + 3) + 0.1 * (config.method.rank != 8) + 1.0 / step  # type: ignore[union-attr]


@dataclass
class Pretended:
    """A training whose rows are there at once, or one more at each look."""

    all_rows: list[dict[str, Any]]
    code: int = 0
    why: Fault = field(default_factory=lambda: Fault("", 1))
    slow: bool = False
    looks: int = 0
    stopped: bool = False

    def ended(self) -> int | None:
        if self.stopped:
            return 75
        return None if self.slow and self.looks < len(self.all_rows) else self.code

    def rows(self) -> list[dict[str, Any]]:
        self.looks += 1
        return self.all_rows[: self.looks] if self.slow else self.all_rows

    def stop(self) -> None:
        self.stopped = True

    def fault(self) -> Fault:
        return self.why


@dataclass
class World:
    """Begins trainings, and remembers which."""

    begun: list[dict[str, Any]] = field(default_factory=list)
    change: Callable[[int, Pretended], Pretended] = lambda _, training: training

    def __call__(self, config: RunConfig, folder: Path, environment: Mapping[str, str]) -> Pretended:
        run = folder / "v1-20260101-000000"
        (run / "checkpoints" / "step-00000004").mkdir(parents=True, exist_ok=True)
        seen = {"optim.learning_rate": config.optim.learning_rate, "method.rank": config.method.rank}  # type: ignore[union-attr]
        self.begun.append({**seen, "folder": folder, "config": config, "environment": dict(environment)})
        rows: list[dict[str, Any]] = [{"step": 0, "eval_loss": 9.0, "best": False}]
        best = math.inf
        for step in (1, 2, 3, 4):
            value = loss(config, step)
            rows += [{"step": step, "total_steps": 4, "loss": value}]
            rows += [{"step": step, "eval_loss": value, "best": value < best}]
            best = min(best, value)
        return self.change(len(self.begun), Pretended(rows))


def wanted(folder: Path, dimensions: tuple[Dimension, ...] = (RATE, RANK), **settings: Any) -> Wanted:
    tree: dict[str, Any] = {
        "model": {"path": "nano"},
        "method": {"type": "lora"},
        "data": {"datasets": ["rows.jsonl"], "validation": ["held.jsonl"]},
        "device": "cpu",
        "eval": {"every": 1},
        "output_dir": str(folder),
    }
    chosen = SearchConfig(**{"trials": 8, "startup_trials": 2, "pruning": "off", **settings})
    config, better = check(tree, chosen, dimensions)
    folder.mkdir(exist_ok=True)
    return Wanted(tree, chosen, dimensions, better, config, folder)


def run(of: Wanted, world: World | None = None) -> Any:
    return search(of, Console(quiet=True), world or World())


def tried(study: Any) -> list[tuple[Any, ...]]:
    return [(tuple(t.params.values()), t.state.name, t.value, t.intermediate_values) for t in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("pruning", ["off", "median", "hyperband"])
def test_the_same_seed_tries_the_same(sampler: str, pruning: str, tmp_path: Path) -> None:
    first = tried(run(wanted(tmp_path / "a", sampler=sampler, pruning=pruning)))
    assert first == tried(run(wanted(tmp_path / "b", sampler=sampler, pruning=pruning)))
    assert first != tried(run(wanted(tmp_path / "c", sampler=sampler, pruning=pruning, seed=7)))


def test_tpe_comes_closer_than_it_began(tmp_path: Path) -> None:
    study = run(wanted(tmp_path / "s", trials=30))
    assert abs(math.log10(study.best_params["optim.learning_rate"]) + 3) < 0.3
    assert study.best_params["method.rank"] == "8"


def test_settings_reach_the_training_as_they_are_told(tmp_path: Path) -> None:
    world = World()
    of = wanted(tmp_path / "s", metric="eval_loss", trials=3)
    run(of, world)
    results = found(of, open_study(of.folder, "minimize"))
    for number, begun in enumerate(world.begun):
        config: RunConfig = begun["config"]
        assert results.trials[number].settings == {key: begun[key] for key in ("optim.learning_rate", "method.rank")}
        assert (config.eval.metric, config.eval.higher_is_better) == ("loss", False)
        assert config.save.total_limit == 1
        assert begun["folder"] == of.folder / "trials" / f"{number + 1:04d}"
        assert float(f"{config.optim.learning_rate:.4g}") == config.optim.learning_rate


def test_a_trial_counts_by_its_best_evaluation_not_its_last(tmp_path: Path) -> None:
    def worse_again(number: int, training: Pretended) -> Pretended:
        training.all_rows.append({"step": 5, "eval_loss": 99.0, "best": False})
        return training

    study = run(wanted(tmp_path / "s", trials=3), World(change=worse_again))
    for trial in study.trials:
        assert trial.value == min(trial.intermediate_values.values()) < 99.0


def test_what_happens_before_the_first_step_is_no_evaluation_of_a_trial(tmp_path: Path) -> None:
    study = run(wanted(tmp_path / "s", trials=2))
    assert all(set(trial.intermediate_values) == {1, 2, 3, 4} for trial in study.trials)


@pytest.mark.parametrize("pruning", ["median", "hyperband"])
@pytest.mark.parametrize("slow", [False, True])
def test_hopeless_trials_are_stopped_the_same_however_they_are_watched(
    pruning: str, slow: bool, tmp_path: Path
) -> None:
    def watched(_: int, training: Pretended) -> Pretended:
        return replace(training, slow=slow)

    study = run(wanted(tmp_path / "s", trials=12, pruning=pruning), World(change=watched))
    again = run(wanted(tmp_path / "t", trials=12, pruning=pruning), World())
    assert tried(study) == tried(again)
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert 1 <= len(pruned) < 12
    assert all(max(trial.intermediate_values) < 4 for trial in pruned)


def test_nothing_is_pruned_at_its_last_step(tmp_path: Path) -> None:
    def only_last(_: int, training: Pretended) -> Pretended:
        training.all_rows = [row for row in training.all_rows if "total_steps" in row or row["step"] == 4]
        return training

    study = run(wanted(tmp_path / "s", trials=8, pruning="median"), World(change=only_last))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_a_failing_trial_is_counted_and_the_search_goes_on(tmp_path: Path) -> None:
    def fails(number: int, training: Pretended) -> Pretended:
        faults = {2: Fault("does not fit", 4), 3: Fault("ended by SIGKILL", -9), 5: Fault("refused", 2)}
        return replace(training, code=faults[number].exit_code, why=faults[number]) if number in faults else training

    of = wanted(tmp_path / "s")
    study = run(of, World(change=fails))
    results = found(of, study)
    assert [each.state for each in results.trials].count("failed") == 3
    assert [each.fault for each in results.trials if each.fault] == ["does not fit", "ended by SIGKILL", "refused"]
    assert len(results.trials) == 8
    assert results.best is not None and results.best.state == "complete"


def test_a_trial_without_a_number_has_failed(tmp_path: Path) -> None:
    def never(number: int, training: Pretended) -> Pretended:
        rows = [{**row, "eval_loss": None} if "eval_loss" in row else row for row in training.all_rows]
        return replace(training, all_rows=rows) if number == 2 else training

    of = wanted(tmp_path / "s", trials=3)
    results = found(of, run(of, World(change=never)))
    assert [each.state for each in results.trials] == ["complete", "failed", "complete"]
    assert "never a number" in results.trials[1].fault


@pytest.mark.parametrize(
    ("fault", "kind", "begun"),
    [
        (Fault("there is no metric 'banana'", 2, "unknown_metric"), ConfigError, 1),
        (Fault("no such file", 3, "bad_data"), DataError, 2),
        (Fault("does not fit", 4, "out_of_memory"), DoesNotFit, 3),
        (Fault("it crashed", 1), LuthierError, 3),
    ],
)
def test_a_search_in_which_nothing_can_work_ends(fault: Fault, kind: type, begun: int, tmp_path: Path) -> None:
    world = World(change=lambda _, training: replace(training, code=fault.exit_code, why=fault))
    with pytest.raises(kind, match=fault.text):
        run(wanted(tmp_path / "s"), world)
    assert len(world.begun) == begun


def test_data_that_no_setting_can_mend_ends_it_at_once(tmp_path: Path) -> None:
    fault = Fault("no such file", 3, "bad_data")
    world = World(change=lambda _, training: replace(training, code=3, why=fault))
    with pytest.raises(DataError):
        run(wanted(tmp_path / "s", (RATE,)), world)
    assert len(world.begun) == 1


def test_a_grid_tries_everything_once(tmp_path: Path) -> None:
    rates = Choices("optim.learning_rate", (1e-4, 1e-3))
    world = World()
    study = run(wanted(tmp_path / "s", (rates, RANK), sampler="grid", trials=50), world)
    assert len(world.begun) == 6 == len({(each["optim.learning_rate"], each["method.rank"]) for each in world.begun})
    assert study.best_params == {"optim.learning_rate": "0.001", "method.rank": "8"}


def test_a_grid_that_is_cut_short_goes_on(tmp_path: Path) -> None:
    rates = Choices("optim.learning_rate", (1e-4, 1e-3))
    world = World()
    run(wanted(tmp_path / "s", (rates, RANK), sampler="grid", trials=2), world)
    run(wanted(tmp_path / "s", (rates, RANK), sampler="grid", trials=50), world)
    assert len(world.begun) == 6 == len({(each["optim.learning_rate"], each["method.rank"]) for each in world.begun})


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_what_was_tried_is_not_trained_again(sampler: str, tmp_path: Path) -> None:
    world = World()
    of = wanted(tmp_path / "s", (RANK,), sampler=sampler, trials=30)
    study = run(of, world)
    assert sorted(each["method.rank"] for each in world.begun) == [4, 8, 16]
    assert len(found(of, study).trials) == 3


class Interrupted(Exception):
    """The search dies."""


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("at", [1, 3, 6])
def test_a_search_that_dies_goes_on_as_if_it_had_not(sampler: str, at: int, tmp_path: Path) -> None:
    whole = tried(run(wanted(tmp_path / "whole", sampler=sampler, pruning="median")))

    def dies(number: int, training: Pretended) -> Pretended:
        if number == at:
            raise Interrupted
        return training

    with pytest.raises(Interrupted):
        run(wanted(tmp_path / "cut", sampler=sampler, pruning="median"), World(change=dies))
    left = open_study(tmp_path / "cut", "minimize").trials
    assert [trial.state.name for trial in left].count("RUNNING") == 1
    world = World()
    assert tried(run(wanted(tmp_path / "cut", sampler=sampler, pruning="median"), world)) == whole
    assert len(world.begun) == 8 - (at - 1)


def test_a_journal_cut_off_in_a_line_loses_only_that_line(tmp_path: Path) -> None:
    study = run(wanted(tmp_path / "s", trials=3))
    before = tried(study)
    file = tmp_path / "s" / "journal.jsonl"
    with file.open("ab") as journal:
        journal.write(b'{"op_code":4,"worker')
    assert tried(open_study(tmp_path / "s", "minimize")) == before
    assert tried(run(wanted(tmp_path / "s", trials=4)))[:3] == before


def test_the_journal_is_lines_of_json(tmp_path: Path) -> None:
    run(wanted(tmp_path / "s", trials=2))
    for line in (tmp_path / "s" / "journal.jsonl").read_text().splitlines():
        json.loads(line)


def test_only_the_best_keep_their_checkpoints(tmp_path: Path) -> None:
    of = wanted(tmp_path / "s", keep=2)
    study = run(of)
    kept = {int(path.parent.parent.name) for path in (tmp_path / "s" / "trials").glob("*/v*/checkpoints")}
    assert kept == {trial.number + 1 for trial in ranked(study)[:2]}
    assert [each.number for each in found(of, study).trials if each.kept] == sorted(kept)
    assert len(list((tmp_path / "s" / "trials").glob("*/v*"))) == 8


def test_time_that_is_up_leaves_trials_to_go_on_with(tmp_path: Path) -> None:
    def forever(number: int, training: Pretended) -> Pretended:
        return replace(training, all_rows=training.all_rows * 10**6, slow=True) if number == 2 else training

    of = wanted(tmp_path / "s", trials=3, timeout=0.5)
    results = found(of, run(of, World(change=forever)))
    assert [each.state for each in results.trials] == ["complete", "unfinished"]
    assert "--resume" in commands(of, results)["Go on searching"]
    of = wanted(tmp_path / "s", trials=3)
    assert [each.state for each in found(of, run(of)).trials] == ["complete"] * 3


def test_several_at_once_take_a_device_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "places", lambda *_: ["0", "1"])
    alive: list[Pretended] = []
    most: list[int] = []

    def slowly(_: int, training: Pretended) -> Pretended:
        training.slow = True
        alive.append(training)
        most.append(sum(each.ended() is None for each in alive))
        return training

    world = World(change=slowly)
    study = run(wanted(tmp_path / "s"), world)
    assert max(most) == 2
    assert {each["environment"]["CUDA_VISIBLE_DEVICES"] for each in world.begun} == {"0", "1"}
    assert len(study.trials) >= 8 and {trial.state.name for trial in study.trials} == {"COMPLETE"}


def test_places() -> None:
    cpu, any_device = RunConfig(device="cpu"), RunConfig(device="auto")
    assert places(SearchConfig(), cpu, {"CUDA_VISIBLE_DEVICES": "0,1"}) == [None]
    assert places(SearchConfig(parallel=2), cpu, {}) == [None, None]
    assert places(SearchConfig(), any_device, {"CUDA_VISIBLE_DEVICES": "3,5"}) == ["3", "5"]
    assert places(SearchConfig(parallel=3), any_device, {"CUDA_VISIBLE_DEVICES": "3,5"}) == ["3", "5", "3"]
    assert places(SearchConfig(), any_device, {"CUDA_VISIBLE_DEVICES": ""}) == [None]
    assert places(SearchConfig(), any_device, {"CUDA_VISIBLE_DEVICES": "0,1", "NPROC_PER_NODE": "2"}) == [None]
    with pytest.raises(ConfigError, match="--parallel"):
        places(SearchConfig(parallel=2), any_device, {"NPROC_PER_NODE": "2"})


def test_what_is_written_at_the_end(tmp_path: Path) -> None:
    of = wanted(tmp_path / "s", trials=12, pruning="median")
    study = run(of, World(change=lambda n, t: replace(t, code=4, why=Fault("does not | fit", 4)) if n == 2 else t))
    results = found(of, study)
    write(of, results)
    told = json.loads((tmp_path / "s" / "search.json").read_text())
    assert told["best"]["value"] == study.best_value
    assert len(told["trials"]) == 12 and told["trials"][1]["state"] == "failed"
    assert set(told["importance"]) == {"optim.learning_rate", "method.rank"}
    assert told["importance"]["optim.learning_rate"] > 0.5
    report = (tmp_path / "s" / "report.md").read_text()
    assert "1 failed" in report and "does not \\| fit" in report and "luthier train" in report
    for name in ("trials", "settings"):
        assert (tmp_path / "s" / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = table(of, results)
    assert rows[0]["trial"] == told["best"]["number"]
    assert str(rows[-1][""]).startswith("does not")
