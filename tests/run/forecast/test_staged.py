"""A plan of stages is one of each, and what the stages then are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.cli.app import main
from luthier.run.config import RunConfig
from luthier.run.forecast.hardware import Device
from luthier.run.forecast.staged import forecast_stages
from luthier.run.stages import train_stages

CPU = Device("cpu", 8.0, gpu=False, kernels=False, bfloat16=False, free_gib=8.0)


def stages(folder: Path, **own: Any) -> dict[str, Any]:
    for name in own:
        lines = [{"query": f"{name} {n}?", "response": name * (n % 3 + 1)} for n in range(12)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "model": {"path": "nano"},
        "data": {"max_length": 64},
        "train": {"micro_batch": 2, "accumulation": 1, "max_steps": 1},
        "method": {"type": "lora", "rank": 4},
        "log": {"report_to": ["none"]},
        "output_dir": str(folder / "runs"),
        "device": "cpu",
        "stages": {
            name: {**settings, "data": {"datasets": [str(folder / f"{name}.jsonl")]}} for name, settings in own.items()
        },
    }


def test_a_plan_of_stages_is_what_they_then_are(tmp_path: Path) -> None:
    own = {"a": {}, "b": {"train": {"max_steps": 2}}, "c": {"method": {"type": "full"}}}
    config = RunConfig.model_validate({**stages(tmp_path, **own), "method": {"type": "lora"}})
    plans = forecast_stages(config, CPU, 1, Console(quiet=True))
    folder = train_stages(config, Console(quiet=True))
    left = json.loads((folder / "stages.json").read_text())
    assert list(plans) == list(left) == ["a", "b", "c"]
    for name, plan in plans.items():
        run = Path(left[name]["run"])
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        began = next(event["data"] for event in events if event["data"].get("event") == "started")
        assert (plan.data.samples, plan.data.steps) == (began["samples"], began["steps"])
        assert plan.trained == began["trained_parameters"]
        written = {file.name: file.stat().st_size for file in Path(left[name]["artefact"]).glob("*.safetensors")}
        assert plan.checkpoint == written
    said = [" ".join(plan.notes) for plan in plans.values()]
    assert "the stage before" not in said[0] and "the stage before" in said[1]
    assert ["merged into it" in notes for notes in said] == [False, False, True]


def test_stages_as_a_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(stages(tmp_path, first={}, second={"optim": {"name": "sgd"}})))
    page = tmp_path / "page.html"
    assert main(["plan", str(recipe), "--device", "L4", "--json", "--html", str(page)]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    told = [row for row in rows if row["type"] == "result"]
    assert [row["stage"] for row in told] == ["first", "second"] and all(row["fits"] for row in told)
    assert told[1]["demands"][0]["optimizer"] < told[0]["demands"][0]["optimizer"]
    assert "first: nano" in page.read_text() and "second: nano" in page.read_text()
    assert main(["plan", str(recipe), "--device", "L4", "--memory", "0.601"]) == 4
    assert "second: Disk" in capfd.readouterr().out


def test_what_is_wrong_with_a_stage_names_it(tmp_path: Path) -> None:
    tree = stages(tmp_path, a={}, b={})
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match=r"stages\.b: .*no such file"):
        forecast_stages(RunConfig.model_validate(tree), CPU, 1, Console(quiet=True))
    tree["stages"]["b"]["data"] = {}
    with pytest.raises(ConfigError, match=r"stages\.b: --dataset"):
        forecast_stages(RunConfig.model_validate(tree), CPU, 1, Console(quiet=True))
