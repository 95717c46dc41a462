"""A talk with a model on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

from luthier.base.errors import DataError
from luthier.base.records import BadRow, Message
from luthier.data.render import Renderer
from luthier.generate.config import SamplingConfig
from luthier.generate.sampler import Sampler

WORDS = "Words: exit, clear, reset-system, multi-line, single-line\n"


class Conversation:
    """One talk on a terminal.

    Words: `exit` or `quit`; `clear` forgets what was said; `reset-system` asks for a new system message; `multi-line`
    reads until a line ends in #, `single-line` undoes that.
    """

    def __init__(
        self, sampler: Sampler, renderer: Renderer, sampling: SamplingConfig, system: str | None, *, stream: bool
    ):
        self.sampler, self.renderer, self.sampling, self.stream = sampler, renderer, sampling, stream
        self.system, self.turns, self.multi_line = system, list[Message](), False

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

    def _answer(self, said: str, show: Callable[[str], None]) -> None:
        system = [Message("system", self.system)] if self.system else []
        messages = [*system, *self.turns, Message("user", said)]
        pieces: list[str] = []
        try:
            prompt = self.renderer.prompt(messages)
            for piece in self._pieces(prompt):
                pieces.append(piece)
                show(piece)
        except KeyboardInterrupt:
            show(" [stopped]")
        except (DataError, BadRow) as error:
            show(f"{error}\nThe word clear forgets what was said before.\n")
            return
        show("\n")
        self.turns += [Message("user", said), Message("assistant", "".join(pieces))]

    def _pieces(self, prompt: Sequence[int]) -> Iterable[str]:
        if self.stream:
            return self.sampler.stream(prompt, self.sampling)
        return [self.sampler.generate([prompt], self.sampling)[0].text]


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
