import json
import os
import pty
import re
import subprocess
import sys

import pytest

from luthier.base.console import Console
from luthier.base.errors import DataError, Stopped


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_people_read_on_stderr_and_results_go_to_stdout(capsys):
    console = Console()
    console.say("[bold]你好[/bold] :smile:")
    console.warn("twice")
    console.warn("twice")
    console.metrics("step 1  loss 2.0", loss=2.0)
    console.error(DataError("row without text", where="a.jsonl:3", fix="Remove it"))
    console.result("answer")
    out, err = capsys.readouterr()
    assert out == "answer\n"
    assert err.splitlines() == [
        "[bold]你好[/bold] :smile:",
        "warning: twice",
        "step 1  loss 2.0",
        "error: a.jsonl:3: row without text. Remove it [bad_data]",
    ]


def test_stopping_is_not_called_an_error(capsys):
    Console().error(Stopped("asked to stop after step 3"))
    assert capsys.readouterr().err.startswith("stopped: asked to stop")


def test_json_mode_prints_one_object_per_call(capsys):
    console = Console(json=True)
    console.say("a\n[b]")
    console.warn("w")
    console.metrics("text", step=1, loss=None)
    console.table("T", [{"名": "x", "n": 1}])
    console.error(DataError("what", where="here"))
    console.result("text only")
    console.result("text", run_dir="r")
    out, err = capsys.readouterr()
    assert err == ""
    assert lines(out) == [
        {"type": "message", "text": "a\n[b]"},
        {"type": "warning", "text": "w"},
        {"type": "metrics", "step": 1, "loss": None},
        {"type": "table", "title": "T", "rows": [{"名": "x", "n": 1}]},
        {"type": "error", "code": "bad_data", "what": "what", "where": "here", "fix": None, "exit_code": 3},
        {"type": "result", "text": "text only"},
        {"type": "result", "run_dir": "r"},
    ]


def test_long_lines_are_not_wrapped(capsys):
    Console(json=True).say("字" * 400)
    Console().say("x" * 400)
    out, err = capsys.readouterr()
    assert lines(out)[0]["text"] == "字" * 400
    assert err == "x" * 400 + "\n"


def test_chinese_columns_line_up(capsys):
    Console().table("T", [{"name": "小琴", "n": 1}, {"name": "Viola", "n": 22}], result=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if "琴" in line or "Viola" in line]
    width = [sum(2 if ord(letter) > 0x2E80 else 1 for letter in row.rstrip()) for row in rows]
    assert width[0] == width[1]


def test_progress_reports_its_end_in_plain_lines_and_json(capsys):
    for console in (Console(), Console(json=True)):
        with console.progress("Tokenising", 1000) as bar:
            for _ in range(100):
                bar.advance(10)
    out, err = capsys.readouterr()
    assert re.fullmatch(r"Tokenising: 1,000/1,000 \(100%\)  0 s\n", err)
    assert lines(out) == [{"type": "progress", "description": "Tokenising", "done": 1000, "total": 1000}]


def test_progress_tells_nothing_twice(capsys, monkeypatch):
    monkeypatch.setattr("luthier.base.console._REPORT", {"plain": 0.0, "json": 0.0})
    with Console().progress("Tokenising") as bar:
        bar.advance(10)
    assert re.fullmatch(r"Tokenising: 10  0 s\n", capsys.readouterr().err)


def test_quiet_speaks_only_of_errors(capsys):
    console = Console(quiet=True)
    console.say("a")
    console.warn("b")
    console.result("c")
    console.table("T", [{"a": 1}])
    with console.progress("d") as bar:
        bar.advance()
    assert capsys.readouterr() == ("", "")
    console.error(Stopped("all of them"))
    console.error(DataError("broken"))
    assert capsys.readouterr().err == "error: broken [bad_data]\n"


@pytest.mark.parametrize("json_mode", [True, False])
def test_a_reader_who_leaves_does_not_stop_the_work(tmp_path, json_mode):
    code = f"""
from pathlib import Path
from luthier.base.console import Console
console = Console(json={json_mode})
for _ in range(2000):
    console.result("x" * 100)
Path("done").touch()
"""
    worker = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    worker.stdout.close()
    worker.wait(timeout=30)
    assert (tmp_path / "done").exists()


def test_terminal_repaints_and_others_get_no_control_codes():
    code = """
from luthier.base.console import Console
console = Console()
with console.progress("Tok", 3) as bar:
    bar.advance(3)
    console.say("between")
with console.live() as line:
    line.update("step 1/2")
    with console.progress("Evaluating", 2) as bar:
        bar.advance(2)
console.say("after")
"""
    controller, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    subprocess.run([sys.executable, "-c", code], stderr=terminal, check=True, env=env)
    os.close(terminal)
    shown = os.read(controller, 100_000).decode()
    os.close(controller)
    assert "\x1b[" in shown
    assert shown.rstrip().endswith("after")
    plain = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True, text=True).stderr
    assert "\x1b" not in plain
    assert "step 1/2" not in plain  # the live line is for terminals; logs carry the rest
    assert "between" in plain
