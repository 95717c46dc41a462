"""Pages as a browser first gets them, and what each shows as plain values."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest

from luthier.run.state import RunState
from luthier.studio.children import Child
from luthier.studio.pages.reports import with_links
from luthier.studio.pages.runs import rows
from luthier.studio.record import checkpoints, commands, data_sets, report_of, run_of, text_of, told
from luthier.studio.roots import Roots
from luthier.studio.talks import deploy_words
from luthier.studio.words import words_in

if TYPE_CHECKING:
    from conftest import Served

RUN = "runs/mine/v1-20260101-120000"


def make_run(root: Path) -> Path:
    """A finished run as training leaves it, without its weights."""
    from luthier.base.config import to_yaml
    from luthier.run.config import RunConfig

    run = root / RUN
    step = run / "checkpoints" / "step-00000030"
    step.mkdir(parents=True, exist_ok=True)
    (step / "MANIFEST.json").write_text("{}")
    (step / "adapter_config.json").write_text("{}")
    (run / "checkpoints" / "LATEST").write_text("step-00000030\n")
    (run / "config.yaml").write_text(to_yaml(RunConfig.model_validate({"model": {"path": "nano"}})))
    events: list[dict[str, Any]] = [
        {"created_at": 1, "type": "message", "level": "info", "message": "Training started",
         "data": {"event": "started", "model": "nano", "objective": "sft", "method": "lora", "steps": 30}},
        {"created_at": 2, "type": "metrics", "message": "Step 1/30", "data": {"step": 1}},
        {"created_at": 3, "type": "message", "level": "info", "message": "finished <b>now</b>",
         "data": {"event": "finished"}},
    ]  # fmt: skip
    (run / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    (run / "metrics.jsonl").write_text('{"step": 30, "total_steps": 30, "loss": 0.25, "memory_gib": 1.5}\n')
    (run / "data_report.json").write_text(json.dumps({"sets": [{"name": "a", "tokens": 4, "trained_tokens": 2}]}))
    (run / "preview.html").write_text("<script>alert(1)</script>")
    return run


def test_a_row_for_each_run() -> None:
    state = RunState(Path("/r/a/v1-20260101-120000"), "training", 3, 12, 0.5, updated=90.0, model="nano", stopping=True)
    roots = Roots([os.sep])
    (row,) = rows([state], roots, 100.0, words_in("en"))
    assert row["share"] == 0.25 and row["loss"] == 0.5
    assert row["shown"]["phase"] == "saving, then stopping"
    assert row["shown"]["updated"] == "10 s ago"
    assert row["link"] == "/run?path=/r/a/v1-20260101-120000"


def test_what_a_run_s_directory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "very-secret-value")
    run = make_run(tmp_path)
    assert [message for _, _, message in told(run)] == ["finished <b>now</b>", "Training started"]
    assert [(kept.name, kept.marks) for kept in checkpoints(run)] == [("step-00000030", ("latest",))]
    assert data_sets(run)[0]["name"] == "a"
    (run / "report.md").write_text("key very-secret-value")
    assert text_of(run, "report.md") == "key ***"
    assert text_of(run, "none.md") is None
    found, python = commands(RunState(run, "finished", 30), RUN)
    assert found["Talk to it"] == f"luthier infer --adapters {RUN}/checkpoints/step-00000030"
    assert "AutoPeftModelForCausalLM" in python[0]
    assert "Go on where it stopped" in commands(RunState(run, "stopped", 30), RUN)[0]
    assert deploy_words(RUN, run) == ["deploy", "--adapters", RUN]
    assert deploy_words("some/hub-id", None) == ["deploy", "--model", "some/hub-id"]


def test_a_training_command_leads_to_its_run(tmp_path: Path) -> None:
    from datetime import datetime

    folder = tmp_path / ".studio" / "20260101-115950-train"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("output_dir: runs/mine\n")
    started = datetime(2026, 1, 1, 11, 59, 50).timestamp()
    child = Child(folder, ("train", "recipe.yaml"), 1, started)
    assert run_of(child, tmp_path) is None
    (tmp_path / "runs/mine/v1-20250101-000000").mkdir(parents=True)
    assert run_of(child, tmp_path) is None, "an earlier run of the same place is another's"
    make_run(tmp_path)
    assert run_of(child, tmp_path) == tmp_path / RUN
    resumed = Child(folder, ("train", "x", "--resume_from_checkpoint", RUN), 1, started + 1e6)
    assert run_of(resumed, tmp_path) == tmp_path / RUN
    reported = Child(folder, ("data", "inspect", "--report", "a/report.json"), 1, started)
    assert report_of(reported, tmp_path) is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("x")
    assert report_of(reported, tmp_path) == tmp_path / "a" / "report.html"
    (tmp_path / "a" / "comparison.html").write_text("x")
    compared = Child(folder, ("compare", "x", "y", "--output_dir", "a"), 1, started)
    assert report_of(compared, tmp_path) == tmp_path / "a" / "comparison.html"
    assert report_of(child, tmp_path) is None


def test_pictures_beside_a_report_are_found(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"")
    shown = with_links("![a](plots/loss.png) ![b](plots/none.png)", tmp_path)
    assert shown == f"![a](/picture?path={quote(str(tmp_path))}/plots/loss.png) ![b](plots/none.png)"


def test_pages_are_served_in_the_reader_s_language_and_from_inside_only(studio: Served) -> None:
    run = make_run(studio.root)
    (studio.root.parent / "outside.html").write_text("outside")
    with httpx.Client(base_url=studio.url, timeout=60) as browser:
        english = browser.get("/")
        assert english.status_code == 200 and "Commands started here" not in english.text
        assert '"name": "runs/mine/v1-20260101-120000"' in english.text.replace('":"', '": "')
        assert "frame-ancestors 'self'" in english.headers["content-security-policy"]
        assert "已完成" in browser.get("/", headers={"Accept-Language": "zh-CN"}).text
        assert "已完成" in browser.get("/", headers={"Cookie": "luthier_language=zh"}).text
        for address in (f"/run?path={RUN}", "/train", "/data", "/chat", "/reports"):
            assert browser.get(address).status_code == 200, address
        for address in (
            "/run?path=../..",
            "/run?path=none",
            "/run?path=runs",
            f"/run?path={RUN}/config.yaml",
            "/job?name=none",
            "/reports?path=/etc/passwd",
        ):
            assert "This page cannot be shown" in browser.get(address).text, address
        shown = browser.get("/paper", params={"path": str(run / "preview.html")})
        assert shown.status_code == 200
        assert shown.headers["content-security-policy"].startswith("sandbox;")
        for path in ("../outside.html", "/etc/passwd", f"{RUN}/config.yaml", RUN):
            assert browser.get("/paper", params={"path": path}).status_code == 404, path
            assert browser.get("/picture", params={"path": path}).status_code == 404, path
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            assert browser.get("/", headers=headers).status_code == 403
        assert browser.get("/docs").status_code == 404
    assert not (studio.root / ".nicegui").exists(), "pages leave nothing in the user's folder"
