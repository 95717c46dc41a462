"""Commands that pages start: they outlive whoever started them, and what became of them is found again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.base.errors import ConfigError
from luthier.studio import children
from luthier.studio.children import Child, Children, ask, error_in


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are lines of Python instead of luthier."""
    monkeypatch.setattr(children, "LUTHIER", (sys.executable, "-c"))


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def ended(child: Child) -> bool:
    return not child.running


def test_a_command_of_luthier_runs_beside_and_is_found_again(tmp_path: Path) -> None:
    started = Children(tmp_path).start("train", ["train", "{folder}/recipe.yaml"], {"recipe.yaml": "nothing: 1\n"})
    assert started.words[1] == f".studio/{started.name}/recipe.yaml"
    until(lambda: ended(started))
    found = Children(tmp_path).find(started.name)
    assert (found, found.exit_code) == (started, 2)
    assert "nothing" in found.tail()
    assert [child.name for child in Children(tmp_path).all()] == [started.name]


@pytest.mark.usefixtures("python")
def test_it_is_asked_to_stop_once_and_ends_as_it_likes(tmp_path: Path) -> None:
    lines = "import signal, sys, time; signal.signal(15, lambda *_: (print('saving'), time.sleep(.5), sys.exit(75)))"
    child = Children(tmp_path).start("data", [f"{lines}\nprint('ready')\nwhile True: time.sleep(.05)"])
    until(lambda: "ready" in child.tail())
    assert child.running and child.exit_code is None
    child.stop()
    child.stop()
    until(lambda: ended(child))
    assert child.exit_code == 75
    assert child.tail().count("saving") == 1


@pytest.mark.usefixtures("python")
def test_what_it_wrote_is_shown_without_secrets_and_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "open-sesame-1234")
    child = Children(tmp_path).start("data", ["print('\\x1b[1mkey open-sesame-1234\\x1b[0m'); print('1 %\\r99 %')"])
    until(lambda: ended(child))
    assert child.tail() == "key ***\n99 %"


@pytest.mark.usefixtures("python")
def test_a_command_that_was_killed_with_its_shell_no_longer_runs(tmp_path: Path) -> None:
    child = Children(tmp_path).start("data", ["import time; time.sleep(60)"])
    until(lambda: child.running)
    os.killpg(os.getpgid(child.pid), signal.SIGKILL)
    until(lambda: ended(child))
    assert child.exit_code is None


STARTER = """
import sys
from pathlib import Path
from luthier.studio import children
children.LUTHIER = (sys.executable, "-c")
print(children.Children(Path(sys.argv[1])).start("data", ["import time; time.sleep(1); print('made')"]).name)
"""


def test_a_command_goes_on_when_who_started_it_has_ended(tmp_path: Path) -> None:
    name = subprocess.run([sys.executable, "-c", STARTER, str(tmp_path)], capture_output=True, text=True, check=True)
    child = Children(tmp_path).find(name.stdout.strip())
    assert child.running
    until(lambda: ended(child))
    assert (child.exit_code, child.tail()) == (0, "made")


def test_only_names_of_commands_are_looked_up(tmp_path: Path) -> None:
    for name in ("", "..", "../x", "20260101-000000-train/..", "none"):
        with pytest.raises(ConfigError, match="no such command"):
            Children(tmp_path).find(name)


def test_a_short_command_tells_code_and_words(tmp_path: Path) -> None:
    code, out, said = asyncio.run(ask(["train", "--dry_run", "--modle", "nano"], tmp_path))
    assert (code, out) == (2, "")
    assert "--modle" in said
    code, out, said = asyncio.run(ask(["train", "--dry_run", "--modle", "nano", "--json"], tmp_path))
    assert (code, said, error_in(out)) == (2, "", "--modle: unknown flag. Did you mean --model?")
    assert error_in("not json\n{}") is None
    code, out, said = asyncio.run(ask(["train", "--dry_run", "--model", "nano", "--dataset", "rows.jsonl"], tmp_path))
    assert code == 0 and "rows.jsonl" in out
