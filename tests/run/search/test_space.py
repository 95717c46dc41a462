"""What a search tries: ranges, choices, what is better, and what is refused before the first trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.base.errors import ConfigError
from luthier.run.search.space import Choices, Range, SearchConfig, check, direction_of, size, values_of

RATE = Range("optim.learning_rate", 1e-5, 1e-2, log=True, whole=False)
RANK = Choices("method.rank", (4, 8, 16))
BATCH = Range("train.accumulation", 2, 8, log=False, whole=True, step=2)


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return {
        "model": {"path": "nano"},
        "method": {"type": "lora"},
        "data": {"datasets": ["rows.jsonl"], "validation": ["held.jsonl"]},
        "output_dir": str(tmp_path / "search"),
    }


def test_numbers_are_short_and_never_beyond_their_range() -> None:
    assert RATE.value(0.00027182818) == 2.718e-4
    assert RATE.value(0.00999996) == 1e-2
    assert Range("optim.eps", 0.12344, 1.0, log=False, whole=False).value(0.12344) == 0.12344
    assert BATCH.value(4.0) == 4 and isinstance(BATCH.value(4.0), int)


def test_a_grid_is_everything_that_can_be_counted() -> None:
    assert list(BATCH.grid()) == [2, 4, 6, 8]
    assert list(Range("x", 1, 4, log=True, whole=True).grid()) == [1, 2, 3, 4]
    assert list(Range("x", 0.0, 0.3, log=False, whole=False, step=0.1).grid()) == [0.0, 0.1, 0.2, 0.3]
    assert (size([RANK, BATCH]), size([RANK, RATE])) == (12, None)


def test_choices_are_told_as_text_and_come_back_as_they_were() -> None:
    targets = Choices("method.target", ("all-linear", ["q_proj", "v_proj"], None, True))
    assert targets.labels() == ["all-linear", '["q_proj", "v_proj"]', "null", "true"]
    assert [targets.value(label) for label in targets.labels()] == list(targets.values)
    assert values_of([RANK, RATE], {"method.rank": "8", "optim.learning_rate": 0.001}) == {
        "method.rank": 8,
        "optim.learning_rate": 0.001,
    }


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("eval_loss", "minimize"),
        ("loss", "minimize"),
        ("eval_sorted/loss", "minimize"),
        ("eval_mse", "minimize"),
        ("eval_token_accuracy", "maximize"),
        ("eval_f1_macro", "maximize"),
        ("eval_macro_f1", "maximize"),
        ("eval_ndcg@10", "maximize"),
        ("eval_recall@1", "maximize"),
        ("eval_spearman", "maximize"),
        ("eval_banana", None),
    ],
)
def test_a_metric_tells_by_its_name_what_is_better(metric: str, better: str | None) -> None:
    assert direction_of(metric) == better


def test_what_can_work_is_let_through(tree: dict[str, Any]) -> None:
    config, better = check(tree, SearchConfig(), [RATE, RANK, BATCH])
    assert (config.optim.learning_rate, config.method.rank, config.train.accumulation) == (1e-5, 4, 2)  # type: ignore[union-attr]
    assert better == "minimize"


REFUSED = {
    "nothing is tried": ([], {}, {}, "--space"),
    "a value that the field refuses": ([Choices("train.accumulation", (0, 4))], {}, {}, "train.accumulation"),
    "an end beyond the field": ([Range("optim.beta1", 0.5, 1.5, log=False, whole=False)], {}, {}, "optim.beta1"),
    "a setting of another method": ([Choices("method.last_layers", (1, 2))], {}, {}, "method"),
    "the search's own": ([Choices("save.every", (1, 2))], {}, {}, "space.save.every"),
    "other validation data": ([Choices("data.validation", ("a", "b"))], {}, {}, "space.data.validation"),
    "a grid without end": ([RATE], {"sampler": "grid"}, {}, "space.optim.learning_rate"),
    "an unknown direction": ([RANK], {"metric": "eval_banana"}, {}, "--metric"),
    "nothing to judge by": ([RANK], {}, {"data": {"datasets": ["rows.jsonl"]}}, "--metric"),
    "a trial that does not start anew": ([RANK], {}, {"save": {"resume": "runs/x"}}, "--resume_from_checkpoint"),
    "stages": ([RANK], {}, {"stages": {"one": {}}}, "stages"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_before_the_first_trial(case: str, tree: dict[str, Any]) -> None:
    dimensions, settings, changes, where = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        check({**tree, **changes}, SearchConfig(**settings), dimensions)
    assert where in str(error.value)
    assert error.value.exit_code == 2


def test_the_wrong_choice_among_many_is_found_and_named(tree: dict[str, Any]) -> None:
    many = [Choices("method.rank", tuple(range(1, 30))), Choices("train.accumulation", (1, 2, 3, 4, 0))]
    with pytest.raises(ConfigError, match=r"train\.accumulation = 0"):
        check(tree, SearchConfig(), many)
