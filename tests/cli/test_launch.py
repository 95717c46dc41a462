import os
import signal
import subprocess
import sys

import pytest

from luthier.base.errors import ConfigError
from luthier.cli.launch import agreed, supervise, torchrun, worker

TWO = {**os.environ, "NPROC_PER_NODE": "2"}
PARENT = [
    sys.executable,
    "-c",
    "import os, sys; from luthier.cli.launch import supervise; sys.exit(supervise(sys.argv[1:], os.environ))",
]
LAUNCHER = """
import os, subprocess, sys
worker = [sys.executable, "-c", sys.argv[1]]
workers = [subprocess.Popen(worker, env={**os.environ, "RANK": rank}) for rank in "01"]
sys.exit(max([worker.wait() != 0 for worker in workers]))
"""
WORKER = """
import os, signal, sys, time
from luthier.cli.launch import worker
with worker(os.environ) as codes:
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    os.write(1, b"ready\\n")
    BODY
sys.exit(codes[-1])
"""


def command(body):
    """A stand-in for torchrun whose two workers run `body`, which appends to `codes`."""
    return [sys.executable, "-c", LAUNCHER, WORKER.replace("BODY", body)]


def test_the_command_on_one_and_on_several_machines():
    several = {"NPROC_PER_NODE": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29"}
    line = " ".join(torchrun(["pt"], several))
    assert "--nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29 -m luthier pt" in line
    assert torchrun(["pt"], {**several, "LOCAL_RANK": "0"}) is None
    assert torchrun(["pt"], {}) is None


@pytest.mark.parametrize("wrong", [{"NPROC_PER_NODE": "two"}, {"NPROC_PER_NODE": "0"}, {"NNODES": "2"}])
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(ConfigError, match=r"NPROC_PER_NODE|MASTER_ADDR"):
        torchrun(["pt"], wrong)


@pytest.mark.parametrize(
    ("code", "told", "asked", "expected"),
    [
        (0, {0}, False, 0),
        (1, {3, 1}, False, 3),
        (1, {75}, True, 75),
        (1, {75}, False, 1),  # torchrun stopped the others because one had died
        (1, set(), True, 130),  # stopped before it trained
        (1, set(), False, 1),
    ],
)
def test_one_exit_code_for_all(code, told, asked, expected):
    assert agreed(code, told, asked=asked) == expected


def test_workers_codes_become_the_commands():
    assert supervise(command("codes.append(0)"), TWO) == 0
    assert supervise(command("codes.append(3 if os.environ['RANK'] == '0' else 1)"), TWO) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_reaches_each_worker_once(number):
    wait = "[time.sleep(0.01) for _ in iter(lambda: bool(asked), True)]; time.sleep(0.5); codes.append(74 + len(asked))"
    with subprocess.Popen([*PARENT, *command(wait)], env=TWO, stdout=subprocess.PIPE) as running:
        assert [running.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        running.send_signal(number)
        assert running.wait(timeout=30) == 75


def test_a_request_before_the_workers_are_there_stops_the_launcher():
    launcher = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(60)"]
    with subprocess.Popen([*PARENT, *launcher], env=TWO, stdout=subprocess.PIPE) as running:
        running.stdout.readline()
        running.terminate()
        assert running.wait(timeout=30) == 130


def test_a_process_on_its_own_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with worker({"RANK": "0"}) as codes:
        codes.append(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [("sys.exit(3)", ""), ("os.kill(os.getpid(), signal.SIGKILL)", "process 0 of this run was killed by SIGKILL\n")],
)
def test_torchrun_adds_nothing_to_what_its_processes_say(tmp_path, body, said):
    worker = tmp_path / "worker.py"
    worker.write_text(f"import os, signal, sys\n{body}\n")
    done = subprocess.run(
        [sys.executable, "-m", "luthier.cli.torchrun", "--nproc_per_node", "1", "--standalone", str(worker)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
