"""A recipe runs its verbs in order, keeps every step, and does no work twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from workshop import write_rows

from luthier.base.errors import ConfigError, DataError
from luthier.cli import app as cli
from luthier.prepare import chunks, clean, dedup, engine
from luthier.prepare import run as run_recipe
from luthier.prepare.stage import Stage
from luthier.prepare.steps import RecipeConfig

ROWS = [{"text": f"text number {number % 90}, a little longer", "label": "ab"[number % 2]} for number in range(100)]


def recipe(folder: Path, **settings: Any) -> Path:
    """A recipe file in a folder, with the rows above as input."""
    folder.mkdir(exist_ok=True)
    if "inputs" not in settings:
        settings["inputs"] = [str(write_rows(folder / "rows.jsonl", ROWS))]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder / "recipe.yaml"


STEPS = [{"dedup": {"exact": True}}, {"split": {"ratio": [0.8, 0.2]}}, {"dedup": {"near": True, "only": "train"}}]


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_steps_work_on_what_the_one_before_wrote(tmp_path: Path) -> None:
    path = recipe(tmp_path / "r", steps=STEPS, output=str(tmp_path / "out.jsonl"), report=str(tmp_path / "report.json"))
    made = run_recipe(path)
    assert (made.done, made.cached) == (3, 0)
    assert made.outputs == {"train": tmp_path / "out.train.jsonl", "validation": tmp_path / "out.validation.jsonl"}
    assert len(read(tmp_path / "out.train.jsonl")) + len(read(tmp_path / "out.validation.jsonl")) <= 90
    report = json.loads((tmp_path / "report.json").read_text())
    assert [step["verb"] for step in report["steps"]] == ["dedup", "split", "dedup"]
    assert report["steps"][0]["summary"]["duplicates"] == 10
    assert report["steps"][2]["inputs"] == ["step 2 (split): train"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<section>") == 3


def test_a_second_run_does_no_work_and_writes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path / "r", steps=STEPS, output=str(tmp_path / "out.jsonl"), report=str(tmp_path / "report.json"))
    run_recipe(path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.*")}
    for file in tmp_path.glob("*.*"):
        file.unlink()
    monkeypatch.setattr(Stage, "run", None)
    made = run_recipe(path)
    assert (made.done, made.cached) == (0, 3)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.*")} == before


def test_only_what_changed_is_done_again(tmp_path: Path) -> None:
    run_recipe(recipe(tmp_path / "r", steps=STEPS))
    assert run_recipe(recipe(tmp_path / "r", steps=[*STEPS[:2], {"dedup": {"near": True}}])).done == 1
    assert run_recipe(recipe(tmp_path / "r", steps=STEPS, seed=7)).done == 3
    write_rows(tmp_path / "r" / "rows.jsonl", ROWS[:-1])
    (tmp_path / "r" / "recipe.yaml").write_text(
        yaml.safe_dump({"inputs": [str(tmp_path / "r" / "rows.jsonl")], "steps": STEPS[:1]})
    )
    assert run_recipe(tmp_path / "r" / "recipe.yaml").done == 1


def test_other_sets_that_a_step_reads_count(tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", ROWS[:3])
    steps = [{"dedup": {"against": [str(other)]}}]
    run_recipe(recipe(tmp_path / "r", steps=steps))
    assert run_recipe(recipe(tmp_path / "r", steps=steps)).done == 0
    write_rows(other, ROWS[:4])
    assert run_recipe(recipe(tmp_path / "r", steps=steps)).done == 1


def test_a_recipe_that_failed_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bad = [*STEPS[:2], {"split": {"ratio": [0.5, 0.5]}}]
    with pytest.raises(ConfigError, match="split already"):
        run_recipe(recipe(tmp_path / "r", steps=bad))
    impossible = [STEPS[0], {"dedup": {"against": [str(tmp_path / "rows.jsonl")], "exact": True}}]
    write_rows(tmp_path / "rows.jsonl", ROWS)
    path = recipe(tmp_path / "r", steps=impossible, bad_rows="strict")
    with pytest.raises(DataError) as caught:
        run_recipe(path)
    assert caught.value.code == "overlap"
    # The error names the row where the user knows it, not in the cache.
    assert caught.value.where == f"{tmp_path / 'r' / 'rows.jsonl'}:1"
    made = run_recipe(recipe(tmp_path / "r", steps=[STEPS[0], {"dedup": {"exact": True}}], bad_rows="strict"))
    assert (made.done, made.cached) == (1, 1)


def test_rows_are_named_by_the_file_they_came_from(tmp_path: Path) -> None:
    steps = [{"dedup": {"exact": True}}, {"dedup": {"key": ["label"]}}]
    path = recipe(tmp_path / "r", steps=steps, report=str(tmp_path / "report.json"))
    run_recipe(path)
    report = json.loads((tmp_path / "report.json").read_text())
    (first, *_) = report["steps"][1]["examples"]["duplicate"]
    assert (first["file"], first["line"], first["repeats"]) == (
        str(tmp_path / "r" / "rows.jsonl"),
        3,
        f"{tmp_path / 'r' / 'rows.jsonl'}:1",
    )


def test_a_verb_without_settings_and_one_input_need_no_brackets() -> None:
    short = RecipeConfig.model_validate({"inputs": "a.jsonl", "steps": ["clean", {"dedup": {"near": True}}]})
    assert short.inputs == ("a.jsonl",) and short.steps[0] == {"clean": None}


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"steps": []}, "no steps"),
        ({"steps": "clean"}, "steps: expected a list, got 'clean'"),
        ({"steps": [{"dedupp": {}}]}, "dedupp"),
        ({"steps": [{"dedup": {"exakt": True}}]}, "exakt"),
        ({"steps": [{"dedup": {}, "split": {}}]}, "one verb"),
        ({"steps": [{"dedup": {"only": "train"}}]}, "no set 'train'"),
        ({"steps": STEPS, "inputs": []}, "no data set"),
        ({"steps": STEPS, "output": "x.csv"}, "cannot tell what to write"),
        ({"stepz": STEPS}, "stepz"),
    ],
)
def test_recipes_that_cannot_work(settings: dict[str, Any], fragment: str, tmp_path: Path) -> None:
    if settings.get("output") == "x.csv":
        settings = {**settings, "steps": STEPS[:1]}
    with pytest.raises(ConfigError) as caught:
        run_recipe(recipe(tmp_path / "r", **settings))
    assert fragment in str(caught.value)


def test_the_input_of_a_recipe_is_never_overwritten(tmp_path: Path) -> None:
    path = recipe(tmp_path / "r", steps=STEPS[:1], output=str(tmp_path / "r" / "rows.jsonl"))
    with pytest.raises(ConfigError, match="overwrite"):
        run_recipe(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path / "r", steps=STEPS[:1])
    code = cli.main(["--json", "data", "run", str(path), "--output", str(tmp_path / "o.parquet"), "--seed", "3"])
    assert code == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1]["outputs"] == {"": str(tmp_path / "o.parquet")}
    assert (said[-1]["steps_done"], said[-1]["steps_cached"]) == (1, 0)
    assert cli.main(["data", "run"]) == 2
    assert cli.main(["data", "run", str(tmp_path / "none.yaml")]) == 2


def test_stopping_is_resumable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    path = recipe(tmp_path / "r", steps=STEPS[:1])
    monkeypatch.setattr(Stage, "run", stop)
    assert cli.main(["data", "run", str(path)]) == 75
    monkeypatch.undo()
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    assert run_recipe(path).done == 1


def troubled(folder: Path) -> list[str]:
    """Files with all that can happen to a row between two steps."""
    rows: list[Any] = [{"text": f"row {number % 60}, a little longer", "n": number % 3} for number in range(150)]
    rows[5] = {"text": "row 7,  a little longer \u200b", "n": 7 % 3}  # equal to an earlier one when it is clean
    rows[60] = {"text": "\u200b\u200b", "n": 1}  # nothing is left of it
    rows[61] = {"messages": [{"role": "user", "content": "q"}]}  # contradicts its shape
    rows[62] = {"n": 0, "text": "row 0, a little longer"}  # equal to the first, written otherwise
    rows[63] = {"text": "x" * 1100}  # too long
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[64], lines[65] = '{"text": ', '{"text":  "\\u0072ow 1, a little longer", "n": 1.0}'
    (folder / "a.jsonl").write_text("\n".join(lines[:70]) + "\n\n" + "\n".join(lines[70:]) + "\n", encoding="utf-8")
    (folder / "b.csv").write_text("text,n\n" + "".join(f'"row {n % 9},  a ""little""",{n}\n' for n in range(40)))
    return [str(folder / "a.jsonl"), str(folder / "b.csv")]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CHAINED = [
    {"clean": {"min_characters": 3}},
    {"dedup": {"exact": True}},
    {"clean": {"lowercase": True, "mask": ["all"]}},
    {"dedup": {"near": True}},
    {"convert": {"to": "text", "keep_columns": True}},
]


@pytest.mark.parametrize(("workers", "policy"), [(1, "drop"), (2, "fix")])
def test_steps_in_one_pass_give_what_each_gives_alone(
    workers: int, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 900)
    monkeypatch.setattr(engine, "SMALL_BYTES", 0)
    inputs = troubled(tmp_path)
    made: list[dict[str, bytes]] = []
    for name, parts in (("together", [5]), ("alone", [1, 2, 3, 4, 5])):
        for upto in parts:
            path = recipe(tmp_path / "r", inputs=inputs, steps=CHAINED[:upto], bad_rows=policy, max_row_bytes=1024)
            wishes = {"output": str(tmp_path / "out.jsonl"), "report": str(tmp_path / "report.json")}
            done = run_recipe(path, cache_dir=str(tmp_path / name), workers=workers, **wishes)
            assert (done.done, done.cached) == ((5, 0) if name == "together" else (1, upto - 1))
        made.append({**tree(tmp_path / name / "prepare"), **{name: (tmp_path / name).read_bytes() for name in OUT}})
    together, alone = made
    assert sum(name.endswith("report.json") for name in alone) == 6
    assert together == alone
    report = json.loads(together["report.json"])
    clean(inputs, min_characters=3, bad_rows=policy, max_row_bytes=1024, output=tmp_path / "clean.jsonl")
    rows = [json.dumps(row, sort_keys=True) for row in read(tmp_path / "clean.jsonl")]
    assert report["steps"][1]["summary"]["duplicates"] == len(rows) - len(set(rows)) > 80
    assert report["steps"][0]["rejected"]["counts"].keys() >= {"malformed_json", "too_long"}


OUT = ("out.jsonl", "report.json", "report.html")


def test_steps_in_one_pass_give_what_the_commands_give(tmp_path: Path) -> None:
    inputs = troubled(tmp_path)
    path = recipe(tmp_path / "r", inputs=inputs, steps=[{"clean": {}}, {"dedup": {"exact": True}}])
    run_recipe(path, output=str(tmp_path / "out.jsonl"), report=str(tmp_path / "report.json"))
    (tmp_path / "one").mkdir()
    first = clean(inputs, output=tmp_path / "one" / "clean.jsonl")
    second = dedup(tmp_path / "one" / "clean.jsonl", output=tmp_path / "one" / "dedup.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "one" / "dedup.jsonl").read_bytes()
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    for step, alone in zip(steps, (first, second), strict=True):
        shown = alone.as_json()
        for key in ("rows", "summary", "counts", "rejected", "charts", "parts"):
            assert step[key] == shown[key], key
        assert step["faulty"]["counts"] == shown["faulty"]["counts"]


def test_a_pair_that_shares_a_pass_is_kept_as_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [{"clean": {}}, {"dedup": {"exact": True}}]
    assert run_recipe(recipe(tmp_path / "r", steps=steps)).done == 2
    assert run_recipe(recipe(tmp_path / "r", steps=steps)).cached == 2
    other = run_recipe(recipe(tmp_path / "r", steps=[steps[0], {"dedup": {"key": ["label"]}}]))
    assert (other.done, other.cached) == (1, 1)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.prepare.verbs.dedup.first_of_equals", stop)  # once the cleaned rows are whole
    path = recipe(tmp_path / "r", steps=[{"clean": {"lowercase": True}}, steps[1]])
    with pytest.raises(KeyboardInterrupt):
        run_recipe(path)
    monkeypatch.undo()
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob(".making-*"))
    again = run_recipe(path)
    assert (again.done, again.cached) == (1, 1)


@pytest.mark.parametrize("runs", [1, 2])
def test_no_row_left_is_an_error_of_the_step_behind(runs: int, tmp_path: Path) -> None:
    steps = [{"clean": {"min_characters": 10_000}}, {"dedup": {"exact": True}}]
    path = recipe(tmp_path / "r", steps=steps)
    for _ in range(runs):  # in one pass, and with the first step in the cache
        with pytest.raises(DataError) as caught:
            run_recipe(path)
    assert (caught.value.code, caught.value.where) == ("no_rows", "step 1 (clean)")


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    steps = [{"clean": {"quality": ["gopher_letters"], "mask": ["all"]}}, {"dedup": {"near": True}}, STEPS[1]]
    names = [
        str(write_rows(tmp_path / f"{part}.jsonl", [{"text": f"{part}, {row['text']}"} for row in ROWS]))
        for part in ("one", "two")
    ]  # a chunk each
    path = recipe(tmp_path / "r", inputs=names, steps=steps)
    made: dict[str, list[bytes]] = {}
    for runner in ("native", "ray"):
        folder = tmp_path / runner
        words = ["data", "run", str(path), "--runner", runner, "--output", str(folder / "out.jsonl")]
        words += ["--report", str(folder / "report.json"), "--cache_dir", str(folder / "cache")]
        # a process of its own: Daft has one runner, and Ray leaves its daemons to it
        subprocess.run([sys.executable, "-m", "luthier", *words], check=True, timeout=600, capture_output=True)
        made[runner] = [(folder / f"out.{part}.jsonl").read_bytes() for part in ("train", "validation")]
        made[runner].append((folder / "report.json").read_bytes())
    assert made["ray"] == made["native"]
    assert len(made["ray"][0].splitlines()) > 20
