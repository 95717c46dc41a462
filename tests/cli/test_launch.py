import os
import signal
import subprocess
import sys

import pytest

from luthier.base.errors import ConfigError
from luthier.cli.launch import agreed, leave_exit_code, supervise, torchrun

LAUNCHER = """
import os, subprocess, sys
worker = [sys.executable, "-c", sys.argv[1]]
workers = [subprocess.Popen(worker, env={**os.environ, "RANK": rank}) for rank in "01"]
sys.exit(max([worker.wait() != 0 for worker in workers]))
"""
WORKER = """
import os, signal, sys, time
from luthier.cli.launch import leave_exit_code
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("ready", flush=True)
BODY
leave_exit_code(code, os.environ)
sys.exit(code)
"""


def command(body):
    """A stand-in for torchrun whose two workers run `body`, which sets `code`."""
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
    assert supervise(command("code = 0"), os.environ) == 0
    assert supervise(command("code = 3 if os.environ['RANK'] == '0' else 1"), os.environ) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_reaches_each_worker_once(number):
    wait = "while not asked: time.sleep(0.01)\ntime.sleep(0.5)\ncode = 75 if len(asked) == 1 else 1"
    parent = "import os, sys; from luthier.cli.launch import supervise; sys.exit(supervise(sys.argv[1:], os.environ))"
    with subprocess.Popen([sys.executable, "-c", parent, *command(wait)], stdout=subprocess.PIPE) as running:
        assert [running.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        running.send_signal(number)
        assert running.wait(timeout=30) == 75


def test_a_process_on_its_own_leaves_nothing(tmp_path):
    leave_exit_code(3, {"RANK": "0"})
    leave_exit_code(3, {"RANK": "1", "LUTHIER_EXIT_CODES": str(tmp_path)})
    assert (tmp_path / "1").read_text() == "3"
