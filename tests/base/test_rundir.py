import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.base import rundir
from luthier.base.errors import ConfigError, RunError
from luthier.base.rundir import RunDir, run_number, write_atomic

HOLD = """
import sys, time
from pathlib import Path
from luthier.base.rundir import RunDir
run = RunDir.create(Path(sys.argv[1]))
print(run.path, flush=True)
time.sleep(60)
"""


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "state.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["state.json"]


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EIO, "cannot_write")])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, number, code):
    path = tmp_path / "state.json"
    write_atomic(path, b"old")

    def fail(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rundir.os, "fsync", fail)
    with pytest.raises(RunError, match=str(path)) as caught:
        write_atomic(path, b"new")
    assert caught.value.code == code
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.json"]


def test_write_atomic_gives_the_permissions_of_a_plain_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomic(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_run_that_wrote_nothing_leaves_no_directory(tmp_path):
    with RunDir.create(tmp_path) as run:
        assert run.path.is_dir()
    assert not run.path.exists()


def test_runs_are_numbered(tmp_path):
    (tmp_path / "v7-20260101-000000").mkdir()
    (tmp_path / "v99").mkdir()
    for number in (8, 9):
        with RunDir.create(tmp_path) as run:
            assert run_number(run.path) == number
            run.write_text("config.yaml", "")
    assert run_number(Path("v99")) is None


def test_output_directory_under_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match="file") as caught:
            RunDir.create(tmp_path / place)
        assert caught.value.code == "bad_output_dir"
        assert caught.value.exit_code == 2


def test_unwritable_output_directory_is_refused():
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        RunDir.create(Path("/proc/luthier"))
    assert caught.value.code == "bad_output_dir"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_directory_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="permission denied"):
        RunDir.create(tmp_path)


def test_reopening_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run to continue") as caught:
        RunDir.reopen(tmp_path / "v1-20260101-000000")
    assert caught.value.code == "no_run"


def test_second_trainer_is_refused_until_the_first_is_dead(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    path = Path(holder.stdout.readline().strip())
    try:
        for open_run in (lambda: RunDir.create(tmp_path), lambda: RunDir.reopen(path)):
            with pytest.raises(ConfigError, match=f"process {holder.pid} on {os.uname().nodename}") as caught:
                open_run()
            assert caught.value.code == "locked"
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid  # stale, and no obstacle
    with RunDir.reopen(path) as run:
        assert run.path == path


def test_of_trainers_started_together_one_wins(tmp_path):
    trainers = [
        subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for _ in range(4)
    ]
    deadline = time.monotonic() + 20
    while sum(trainer.poll() is None for trainer in trainers) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = [trainer for trainer in trainers if trainer.poll() is None]
    for trainer in trainers:
        trainer.kill()
        trainer.wait()
        trainer.stdout.close()
    assert len(alive) == 1
    assert len([path for path in tmp_path.iterdir() if run_number(path)]) == 1


def test_an_orphaned_worker_does_not_keep_the_lock_of_a_dead_trainer(tmp_path):
    fork = "import os\nif os.fork() == 0:\n    print(os.getpid(), flush=True)\n"
    code = HOLD.replace("time.sleep", fork + "time.sleep")
    trainer = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    trainer.stdout.readline()
    worker = int(trainer.stdout.readline())
    trainer.kill()
    trainer.wait()
    RunDir.create(tmp_path).close()
    os.kill(worker, signal.SIGKILL)
    trainer.stdout.close()


def test_rows_survive_a_line_cut_off_by_a_crash(tmp_path):
    run = RunDir(tmp_path)
    run.append_json("metrics.jsonl", {"step": 1, "loss": float("nan")})
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 2, "lo')
    run.append_json("metrics.jsonl", {"step": 3, "text": "你好"})
    assert run.read_rows("metrics.jsonl") == [{"step": 1, "loss": None}, {"step": 3, "text": "你好"}]


def test_truncate_keeps_the_accepted_rows(tmp_path):
    run = RunDir(tmp_path)
    run.truncate_rows("metrics.jsonl", lambda row: True)  # nothing there yet
    for step in range(5):
        run.append_json("metrics.jsonl", {"step": step})
    run.truncate_rows("metrics.jsonl", lambda row: row["step"] < 3)
    assert [row["step"] for row in run.read_rows("metrics.jsonl")] == [0, 1, 2]


def test_appending_to_a_full_disk_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="disk is full") as caught:
        RunDir(tmp_path).append_json("metrics.jsonl", {"step": 1})
    assert caught.value.code == "disk_full"


def test_json_and_text_are_written_below_new_directories(tmp_path):
    run = RunDir(tmp_path)
    assert json.loads(run.write_json("plots/data.json", {"名": [1, None]}).read_text()) == {"名": [1, None]}
    assert run.write_text("report.md", "# 报告\n").read_text(encoding="utf-8") == "# 报告\n"
