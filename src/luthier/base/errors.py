"""Every error a user can meet, each with one message and one exit code.

A message says what happened, where, and what to do.  Exit codes: 0 done, 1 the run failed, 2 bad usage or
config, 3 bad data, 4 does not fit in memory, 75 stopped and resumable.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager


class LuthierError(Exception):
    """Root of all errors raised on purpose.

    Args:
        what: what happened, one sentence without a full stop at the end.
        where: the file, line, flag or config path it happened at.
        fix: what the user can do about it.
        code: stable machine-readable name; defaults to the class's own.
    """

    exit_code = 1
    code = "error"

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, code: str | None = None):
        self.what, self.where, self.fix = what, where, fix
        if code is not None:
            self.code = code
        super().__init__(str(self))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        # Words of libraries may bring their full stop.
        return f"{text.removesuffix('.')}. {self.fix}" if self.fix else text


class ConfigError(LuthierError, ValueError):
    """A flag, recipe or combination of settings that cannot work."""

    exit_code = 2
    code = "bad_config"


class ModelError(ConfigError):
    """A model, tokenizer or adapter that cannot be loaded or used as asked."""

    code = "bad_model"


class MissingExtra(ConfigError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    code = "missing_extra"

    def __init__(self, package: str, extra: str, *, what_for: str):
        super().__init__(
            f"{what_for} needs the package {package!r}, which is not installed",
            fix=f"Install it with: pip install 'luthier[{extra}]'",
        )


class DataError(LuthierError, ValueError):
    """A data set that cannot be read, or that a model could not learn from."""

    exit_code = 3
    code = "bad_data"


class DoesNotFit(LuthierError, MemoryError):
    """The run does not fit in memory."""

    exit_code = 4
    code = "out_of_memory"


class RunError(LuthierError, RuntimeError):
    """A run that started and could not go on."""

    code = "run_failed"


class Stopped(LuthierError, InterruptedError):
    """The run was asked to stop, has saved, and can be resumed."""

    exit_code = 75
    code = "stopped"


@contextmanager
def together() -> Generator[None]:
    """A collective that fails has lost a process; that process says why, this one only that it is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RunError("another process of this run is gone; its own message says why", code="peer_lost") from error
