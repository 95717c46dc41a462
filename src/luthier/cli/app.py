"""The `luthier` command: one thin function per subcommand, heavy imports inside."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import typer

from luthier import __version__
from luthier.base.config import Config, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DoesNotFit, LuthierError
from luthier.base.rundir import storage_error
from luthier.cli.commands import instead_of
from luthier.cli.listed import LISTED, Listed

_RAW = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a language model through its whole working life on your own machines.",
    epilog="luthier COMMAND -h lists every flag of a command.",
)


@app.command("sft", context_settings=_RAW, add_help_option=False)
def sft(context: typer.Context) -> int:
    """Fine-tune on chats."""
    return _train(context, "sft")


@app.command("pretrain", context_settings=_RAW, add_help_option=False)
def pretrain(context: typer.Context) -> int:
    """Train on every token of plain text."""
    return _train(context, "pretrain")


@app.command("pt", context_settings=_RAW, add_help_option=False, hidden=True)
def pt(context: typer.Context) -> int:
    """Train on every token of plain text."""
    return _train(context, "pretrain")


@app.command("train", context_settings=_RAW, add_help_option=False)
def train(context: typer.Context) -> int:
    """Run a recipe."""
    return _train(context, None)


@app.command("plan", context_settings=_RAW, add_help_option=False)
def plan(context: typer.Context) -> int:
    """Tell what a training would need: memory, disk, steps, time."""
    from luthier.cli.plan import plan

    return plan(context.args, context.obj, dict(os.environ))


def _found(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def _add(command: Listed) -> None:
    def run(context: typer.Context) -> None:
        options = _options(context, command)
        if options:
            _found(command.run)(options, context.obj)

    run.__doc__ = command.short
    app.command(command.name, context_settings=_RAW, add_help_option=False)(run)


for _command in LISTED:
    _add(_command)


@app.command("data", context_settings=_RAW, add_help_option=False)
def data(context: typer.Context) -> int:
    """Turn raw files into a training set: dedup, split, convert ..."""
    from luthier.cli.data import data

    return data(context.args, context.obj)


@app.command("search", context_settings=_RAW, add_help_option=False)
def search(context: typer.Context) -> int:
    """Search for good settings of a training."""
    from luthier.cli.search import search_command

    return search_command(context.args, context.obj)


def _train(context: typer.Context, objective: Literal["sft", "pretrain"] | None) -> int:
    from luthier.cli.train import PRETRAIN, SFT, TRAIN, run_command

    command = {"sft": SFT, "pretrain": PRETRAIN, None: TRAIN}[objective]
    return run_command(command, context.args, objective, context.obj)


def _options(context: typer.Context, command: Listed) -> Config | None:
    """The settings of a command; None when its help was asked for and printed."""
    from luthier.cli.flags import choose_members, parse
    from luthier.cli.help import Command, page

    console: Console = context.obj
    kind: type[Config] = _found(command.config)
    if "-h" in context.args or "--help" in context.args:
        switches = {
            "--json": "Print one JSON object per line on stdout, for programs.",
            "-h, --help": "Print this page.",
        }
        console.result(page(Command(command.name, "[flags]", command.about, command.examples, switches), kind))
        return None
    words = context.args
    if command.first is not None and words and not words[0].startswith("-"):
        words = [command.first, *words]
    parsed = parse(words, kind)
    choose_members(parsed.tree, kind)
    for note in parsed.notes:
        console.warn(note)
    return validate(kind, parsed.tree)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: see `base.errors`, and 130 when interrupted before training."""
    # Threads that wait by spinning slow a CPU run tenfold as soon as anything else wants the cores; it is read when
    # torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    json = "--json" in words
    words = [word for word in words if word != "--json"] or ["--help"]
    console = Console(json=json, quiet=os.environ.get("RANK", "0") != "0")
    if words[:1] == ["--version"]:
        console.result(f"luthier {__version__}", version=__version__)
        return 0
    try:
        _check_command(words)
        code = app(args=words, obj=console, standalone_mode=False) or 0
    except typer.Abort:  # Ctrl-C, which newer versions of typer turn into 130
        code = 130
    except Exception as error:
        if os.environ.get("LUTHIER_DEBUG"):
            raise
        known = _explain(error)
        console.error(known)
        code = known.exit_code
    if code == 130:
        console.say("interrupted")
    return code


def _check_command(words: list[str]) -> None:
    names = [str(command.name) for command in app.registered_commands]
    if words[0] in ("-h", "--help", *names):
        return
    raise ConfigError(f"there is no command {words[0]!r}", fix=instead_of(words[0], names), code="unknown_command")


def _explain(error: Exception) -> LuthierError:
    """The error as a person should meet it; what nobody foresaw is a bug, and its traceback is kept in a file."""
    if isinstance(error, LuthierError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_error(error, Path(error.filename or "."))
    if isinstance(error, PermissionError | IsADirectoryError | NotADirectoryError) and error.filename:
        return ConfigError(str(error.strerror).lower(), where=str(error.filename), code="bad_path")
    if isinstance(error, MemoryError):
        return DoesNotFit("the machine's memory is used up", fix="Lower --max_length or --per_device_train_batch_size")
    handle, name = tempfile.mkstemp(prefix="luthier-bug-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(f"luthier {__version__}\n")
        traceback.print_exception(error, file=file)
    return LuthierError(
        f"this is a bug in Luthier: {type(error).__name__}: {error}",
        fix=f"Please report it with the traceback in {name}",
        code="bug",
    )
