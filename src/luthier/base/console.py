"""Everything a command says to a person, or to a program with --json.

A person reads on stderr; what was asked for (a config, a table, an answer) goes to stdout.  With --json every
call prints one JSON object per line on stdout: {"type": "message" | "warning" | "error" | "progress" | "table" |
"metrics" | "result", ...}.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from rich import box
from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from luthier.base.errors import LuthierError, Stopped
from luthier.base.records import Json
from luthier.base.rundir import rows_of, storage_error

_REPAINT = 0.1  # seconds between repaints of the live lines
_REPORT = {"json": 1.0, "plain": 10.0}  # seconds between reports of progress where nothing can be repainted
_PLAIN_WIDTH = 120  # columns of a table that is not shown on a terminal


class Line:
    """One line at the bottom of the terminal that is rewritten in place; on anything but a terminal it is silent."""

    def __init__(self, console: Console):
        self._console = console
        self.text = Text(no_wrap=True, overflow="ellipsis")

    def update(self, text: str) -> None:
        """Replace the line."""
        self.text.plain = text
        self._console.repaint()


class Progress:
    """How far a known or unknown amount of work has come; see `Console.progress`."""

    def __init__(self, console: Console, line: Line, description: str, total: int | None):
        self.description, self.total, self.done = description, total, 0
        self._console, self._line = console, line
        self._start = self._reported = time.monotonic()
        self._told = -1

    def advance(self, n: int = 1) -> None:
        """Count `n` more done."""
        self.done += n
        self._line.update(self._sentence())
        self._report(finished=False)

    def finish(self) -> None:
        """Report the end where nothing is repainted."""
        self._report(finished=True)

    def _sentence(self) -> str:
        share = f"/{self.total:,} ({self.done / self.total:4.0%})" if self.total else ""
        return f"{self.description}: {self.done:,}{share}  {time.monotonic() - self._start:.0f} s"

    def _report(self, *, finished: bool) -> None:
        now = time.monotonic()
        every = _REPORT["json" if self._console.json else "plain"]
        if self.done == self._told or (not finished and now - self._reported < every):
            return
        self._reported, self._told = now, self.done
        if self._console.json:
            self._console.emit("progress", description=self.description, done=self.done, total=self.total)
        elif not self._console.paints:
            self._console.say(self._sentence())


class Console:
    """The one voice of a command.

    Args:
        json: print JSON lines for programs instead of text for people.
        quiet: print errors only; for ranks other than 0.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False):
        self.json, self.quiet = json, quiet
        self._err = _Stream(stderr=True)
        self._out = _Stream(stderr=False)
        self._warned: set[str] = set()
        self._lines: list[Line] = []
        self._live: Live | None = None
        self._painted = 0.0

    @property
    def paints(self) -> bool:
        """Whether lines can be rewritten in place: a person's terminal."""
        return not (self.json or self.quiet) and self._err.is_terminal and not self._err.is_dumb_terminal

    def say(self, text: str | Text, *, style: str = "") -> None:
        """Tell a person something.  `style` is a rich style such as "bold" or "dim"."""
        if self.json:
            self.emit("message", text=str(text))
        elif not self.quiet:
            self._print(self._err, Text(text, style=style) if isinstance(text, str) else text)

    def warn(self, text: str) -> None:
        """Warn, once per text."""
        if text in self._warned or self.quiet:
            return
        self._warned.add(text)
        if self.json:
            self.emit("warning", text=text)
        else:
            self._print(self._err, Text.assemble(("warning: ", "yellow"), text))

    def error(self, error: LuthierError) -> None:
        """Say what ended the command; also when quiet, unless all processes agree on it or another one tells it."""
        if self.quiet and (isinstance(error, Stopped) or error.code == "peer_lost"):
            return
        if self.json:
            fields = {"code": error.code, "what": error.what, "where": error.where, "fix": error.fix}
            self._write_json({"type": "error", **fields, "exit_code": error.exit_code})
        else:
            label = "stopped: " if isinstance(error, Stopped) else "error: "
            self._print(self._err, Text.assemble((label, "bold red"), str(error), (f" [{error.code}]", "dim")))

    def result(self, text: str | Text, **fields: Json) -> None:
        """Print what was asked for, on stdout.  With --json the fields, or the text when there are none."""
        if self.json:
            self.emit("result", **(fields or {"text": str(text)}))
        elif not self.quiet:
            self._print(self._out, text)

    def metrics(self, text: str, **fields: Json) -> None:
        """One line of measurements: `text` for a person, the fields for a program."""
        if self.json:
            self.emit("metrics", **fields)
        elif not self.quiet:
            self._print(self._err, text)

    def table(self, title: str, rows: Sequence[Mapping[str, Json]], *, result: bool = False) -> None:
        """A table whose columns are the keys of its first row; `result` sends it to stdout."""
        if self.json:
            self.emit("table", title=title, rows=[dict(row) for row in rows])
        elif not self.quiet and rows:
            self._print(self._out if result else self._err, _table(title, rows))

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Generator[Progress]:
        """Show work advancing: `with console.progress("Tokenising", 1000) as bar: bar.advance(10)`."""
        with self.live() as line:
            bar = Progress(self, line, description, total)
            yield bar
            bar.finish()

    @contextmanager
    def live(self) -> Generator[Line]:
        """A line that is rewritten in place while the block runs, below whatever else is printed."""
        line = Line(self)
        if not self.paints:
            yield line
            return
        self._lines.append(line)
        if self._live is None:
            self._live = Live(console=self._err, auto_refresh=False, transient=True)
            self._live.start()
        try:
            yield line
        finally:
            self._lines.remove(line)
            self.repaint(now=True)
            if not self._lines:
                self._live.stop()
                self._live = None

    def repaint(self, *, now: bool = False) -> None:
        """Redraw the live lines, at most ten times a second unless `now`."""
        if self._live is None or not (now or time.monotonic() - self._painted >= _REPAINT):
            return
        self._painted = time.monotonic()
        self._live.update(Group(*(line.text for line in self._lines)), refresh=True)

    def emit(self, kind: str, **fields: Json) -> None:
        """One JSON line on stdout, unless quiet."""
        if not self.quiet:
            self._write_json({"type": kind, **fields})

    def _write_json(self, row: Mapping[str, Json]) -> None:
        self._print(self._out, Text(orjson.dumps(row).decode()))

    def _print(self, stream: RichConsole, content: str | Text | Table) -> None:
        try:
            stream.print(content, soft_wrap=not isinstance(content, Table))
            stream.file.flush()
        except OSError as error:  # a terminal that has gone is no reason to stop training; a lost answer is
            stream.quiet = True
            if stream is self._out and not self.json:
                raise storage_error(error, Path("standard output")) from error


class _Stream(RichConsole):
    """One of the two streams.  A reader who leaves silences it, and never ends the process as rich would."""

    def __init__(self, *, stderr: bool):
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)
        if not self.is_terminal:
            self.width = _PLAIN_WIDTH

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # what is still buffered goes there when Python exits
        os.close(nowhere)


def _table(title: str, rows: Sequence[Mapping[str, Json]]) -> Table:
    named = any(name.strip() for name in rows[0])
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, show_header=named)
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for name, value in rows[0].items():
        table.add_column(Text(name), justify="right" if isinstance(value, int | float) else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell(value)) for value in row.values()))
    return table


def cell(value: Json) -> str:
    """A value in a table: thousands apart, nothing for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def told_error(out: str) -> LuthierError | None:
    """The error that a command with --json printed, the last one; None where it printed none."""
    for row in reversed(rows_of(out.splitlines())):
        if row.get("type") == "error":
            told: dict[str, Any] = {name: row.get(name) for name in ("where", "fix", "code")}
            return LuthierError(str(row.get("what")), **told)
    return None
