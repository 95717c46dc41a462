"""A command that is tied to its parent ends with it, however the parent ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

from luthier.base.signals import tied

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([*sys.argv[1:], sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties processes")
def test_a_tied_command_is_ended_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, *tied()], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        child = psutil.Process(int((lines - {"up"}).pop()))
        assert child.is_running() and child.cmdline()[1] == "-c" and "prctl" not in child.cmdline()[2]
        parent.send_signal(signal.SIGKILL)
        for _ in range(100):
            if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
                return
            time.sleep(0.1)
        child.kill()
        pytest.fail("it outlived its parent")
