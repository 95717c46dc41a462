"""A talk with a model on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

from luthier.base.errors import ConfigError, DataError
from luthier.base.records import BadRow, Message
from luthier.cli.speaker import Speaker
from luthier.generate.request import Request

WORDS = "Words: exit, clear, reset-system, multi-line, single-line, use NAME (another adapter)\n"


class Conversation:
    """One talk on a terminal.

    Words: `exit` or `quit`; `clear` forgets what was said; `reset-system` asks for a new system message; `multi-line`
    reads until a line ends in #, `single-line` undoes that; `use NAME` lets another adapter go on.
    """

    def __init__(self, speaker: Speaker, *, stream: bool):
        self.speaker, self.stream = speaker, stream
        self.system, self.turns, self.multi_line = speaker.system(), list[Message](), False

    def run(self, read: Callable[[str], str | None], show: Callable[[str], None]) -> None:
        """Read and answer until `read` gives None or a word ends it."""
        while (said := self._read(read)) is not None:
            match said.strip():
                case "exit" | "quit":
                    return
                case "clear":
                    self.turns.clear()
                case "reset-system":
                    self.system = read("new system message: ") or None
                    self.turns.clear()
                case "multi-line" | "single-line" as word:
                    self.multi_line = word == "multi-line"
                case "":
                    pass
                case word if word.startswith("use ") and len(word.split()) == 2 and len(self.speaker.names) > 1:
                    self._use(word.split()[1], show)
                case _:
                    self._answer(said, show)

    def _read(self, read: Callable[[str], str | None]) -> str | None:
        if not self.multi_line:
            return read("<<< ")
        lines: list[str] = []
        while (line := read("... " if lines else "<<<# ")) is not None:
            if line.strip() == "single-line" and not lines:
                return line
            if line.endswith("#"):
                return "\n".join([*lines, line[:-1]])
            lines.append(line)
        return "\n".join(lines) if lines else None

    def _use(self, name: str, show: Callable[[str], None]) -> None:
        before = self.speaker.system()
        try:
            self.speaker.choose(name)
        except ConfigError as error:
            show(f"{error}\n")
            return
        if self.system == before:  # nobody has asked for another one
            self.system = self.speaker.system()

    def _answer(self, said: str, show: Callable[[str], None]) -> None:
        system = [Message("system", self.system)] if self.system else []
        messages = [*system, *self.turns, Message("user", said)]
        pieces: list[str] = []
        try:
            for piece in self._pieces(self.speaker.request(messages)):
                pieces.append(piece)
                show(piece)
        except KeyboardInterrupt:
            show(" [stopped]")
        except (DataError, BadRow) as error:
            show(f"{error}\nThe word clear forgets what was said before.\n")
            return
        show("\n")
        self.turns += [Message("user", said), Message("assistant", "".join(pieces))]

    def _pieces(self, request: Request) -> Iterable[str]:
        pieces = (piece.text for piece in self.speaker.generator.pieces(request))
        return pieces if self.stream else ["".join(pieces)]


def typed(prompt: str) -> str | None:
    """A line from the keyboard or a pipe; None at its end."""
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        return None


def show(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
