"""How a run stands is told by its directory, whatever else is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.base.rundir import RunDir
from luthier.run.state import Holder, ask_to_stop, holder_of, phase_of, state_of, tail_rows

NOW = 1_800_000_000.0


def event(kind: str, at: float = NOW, **data: Json) -> dict[str, Json]:
    return {"created_at": int(at), "message": f"it {kind}", "data": {"event": kind, **data}}


def run_with(tmp_path: Path, *events: dict[str, Json], saved: bool = True) -> Path:
    run = RunDir(tmp_path / "out" / "v1-20260101-120000")
    for row in events:
        run.append_json("events.jsonl", row)
    run.append_json("metrics.jsonl", {"step": 4, "total_steps": 9, "loss": 1.5, "tokens_per_second": 70.0, "time": NOW})
    run.append_json("metrics.jsonl", {"step": 4, "eval_loss": 1.25})
    if saved:
        run.file("checkpoints/LATEST").write_text("step-00000004")
    return run.path


@pytest.mark.parametrize(
    ("last", "saved", "phase", "resumable"),
    [
        ("finished", True, "finished", False),
        ("failed", True, "failed", True),
        ("failed", False, "failed", False),
        ("stopping", True, "stopped", True),
        ("checkpoint", True, "stopped", True),
        ("checkpoint", False, "failed", False),
    ],
)
def test_a_run_that_nobody_trains(tmp_path: Path, last: str, saved: bool, phase: str, resumable: bool) -> None:
    run = run_with(tmp_path, event("started", model="nano", objective="sft", steps=9), event(last), saved=saved)
    state = state_of(run)
    assert (state.phase, state.resumable) == (phase, resumable)
    assert (state.step, state.total_steps, state.loss, state.eval_loss) == (4, 9, 1.5, 1.25)
    assert (state.model, state.task) == ("nano", "sft")
    assert state.eta_seconds is None, "nothing is left to wait for"


def test_what_failed_is_told(tmp_path: Path) -> None:
    assert state_of(run_with(tmp_path, event("started"), event("failed"))).message == "it failed"


def test_an_empty_directory_is_a_run_that_failed(tmp_path: Path) -> None:
    (tmp_path / "v1-20260101-120000").mkdir()
    assert state_of(tmp_path / "v1-20260101-120000").phase == "failed"


def test_phases_of_a_living_run() -> None:
    holder = Holder(1, NOW, True)
    rows: list[dict[str, Json]] = [{"time": NOW + 10}, {"time": NOW + 30}]

    def phase(events: list[dict[str, Json]], silent: float) -> str:
        return phase_of(events, rows, holder, True, NOW, NOW + silent)

    assert phase([event("finished", NOW - 60)], 1) == "preparing", "events of before it was resumed say nothing"
    assert phase([event("started")], 100) == "training"
    assert phase([event("started")], 159) == "training", "eight of its pauses"
    assert phase([event("started")], 161) == "stale"
    assert phase([event("checkpoint")], 1) == "training", "the start may lie too far back to be read"
    assert phase([event("started"), event("finished")], 1) == "finished"


HOLD = """
import sys, time
from pathlib import Path
from luthier.base.rundir import RunDir
from luthier.base.signals import stop_requests
with RunDir.create(Path(sys.argv[1])) as run, stop_requests("ending") as request:
    run.append_json("events.jsonl", {"created_at": int(time.time()) + 1, "data": {"event": "started"}})
    print(run.path, flush=True)
    while not request.asked:
        time.sleep(0.05)
"""


def test_the_holder_of_a_run_is_found_and_stopped_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        run = Path(process.stdout.readline().strip())
        holder = holder_of(tmp_path)
        assert holder is not None and (holder.pid, holder.ours) == (process.pid, True)
        assert state_of(run).phase == "training"
        assert state_of(run, time.time() + 500).phase == "stale"
        other = run_with(tmp_path / "else", event("started"))
        assert state_of(other).phase == "stopped", "the process is at work on another run"
        RunDir(run).append_json("events.jsonl", event("stopping", time.time() + 1))
        with pytest.raises(ConfigError, match="already saving"):
            ask_to_stop(run)
        (run / "events.jsonl").write_bytes(b"")
        assert ask_to_stop(run) == process.pid
        assert process.wait(10) == 0, "one signal, and an orderly end"
    finally:
        process.kill()
        process.stdout.close()  # pyright: ignore
        process.wait()
    assert holder_of(tmp_path) is None
    with pytest.raises(ConfigError, match="nobody"):
        ask_to_stop(run)


def test_an_earlier_run_of_the_same_place_is_not_at_work(tmp_path: Path) -> None:
    first = run_with(tmp_path, event("started"))
    past = time.time() - 100
    for place in (first, first / "events.jsonl", first / "metrics.jsonl"):
        os.utime(place, (past, past))
    with RunDir.create(tmp_path / "out") as second:
        assert state_of(second.path).phase == "preparing"
        assert state_of(first).phase == "stopped"
        assert holder_of(tmp_path / "out") == state_of(second.path).holder


def test_a_lock_of_a_process_that_is_gone_or_strange_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    assert holder_of(tmp_path) is None
    told = {"pid": os.getpid(), "host": os.uname().nodename, "since": "2100-01-01T00:00:00"}
    lock.write_bytes(orjson.dumps(told))
    assert holder_of(tmp_path) is None, "this process lives, but does not have the file open"
    for wrong in (b"", b"[]", b"{}", orjson.dumps(told | {"host": "elsewhere"}), orjson.dumps(told | {"pid": "x"})):
        lock.write_bytes(wrong)
        assert holder_of(tmp_path) is None


def test_tails_begin_with_a_whole_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(orjson.dumps({"n": n}) + b"\n" for n in range(100)) + b'{"n": 10')
    assert [row["n"] for row in tail_rows(file, 40)] == [97, 98, 99]
    assert len(tail_rows(file)) == 100
    assert tail_rows(tmp_path / "none.jsonl") == []
