"""`luthier data <verb>`: the workshop on the command line.  Every verb of `luthier.prepare.verbs` is a command."""

from __future__ import annotations

import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from luthier.base.config import Config, merge, nearest, read_yaml, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, Stopped
from luthier.cli.flags import parse
from luthier.cli.help import Command, page
from luthier.prepare import verbs
from luthier.prepare.config import CommandConfig, ReadConfig, VerbConfig

C = TypeVar("C", bound=Config)

_RUN_ABOUT = "Run a recipe: verbs one after the other, each kept in a cache."
_SWITCHES = {
    "--json": "Print one JSON object per line on stdout, for programs.",
    "-h, --help": "Print this page.",
}


def data(words: Sequence[str], console: Console) -> int:
    """One command of the workshop, from its words to its exit code.

    Raises:
        LuthierError: see `luthier.prepare.work.do` and `luthier.prepare.recipe.run`.
    """
    known = [*verbs.names(), "run"]
    if not words or words[0] in ("-h", "--help"):
        console.result(_overview(known))
        return 0
    name, *rest = words
    if name not in known:
        hint = nearest(name, known)
        fix = f"Did you mean {hint!r}?" if hint else f"Verbs: {', '.join(known)}"
        raise ConfigError(f"there is no verb {name!r}", where="luthier data", fix=fix, code="unknown_command")
    with _stoppable():
        return _run(rest, console) if name == "run" else _verb(name, rest, console)


def _overview(known: Sequence[str]) -> str:
    abouts = [(name, _RUN_ABOUT if name == "run" else verbs.about(name)) for name in known]
    width = max(len(name) for name in known) + 3
    lines = [f"  {name.ljust(width)}{about}" for name, about in abouts]
    head = "usage: luthier data VERB INPUT [INPUT ...] [--output FILE.jsonl|.parquet] [--report FILE.json] [flags]"
    tail = "luthier data VERB -h lists every flag of a verb."
    return "\n".join([head, "", "From raw files to a training set.", "", "Verbs:", *lines, "", tail]) + "\n"


def command_config(kind: type[VerbConfig]) -> type[CommandConfig]:
    """The settings of a verb together with those that all verbs share."""
    made = type(f"{kind.__name__}Command", (CommandConfig, kind), {"__module__": kind.__module__})
    assert issubclass(made, CommandConfig)
    return made


def _verb(name: str, words: Sequence[str], console: Console) -> int:
    verb = verbs.load(name)
    kind = command_config(verb.config)
    if "-h" in words or "--help" in words:
        usage = "INPUT [INPUT ...] [flags]"
        console.result(page(Command(f"data {name}", usage, verb.about, verb.examples, _SWITCHES), kind))
        return 0
    options = _options(words, kind, console)
    shown = options.model_dump()
    config = validate(verb.config, {field: shown[field] for field in verb.config.model_fields})
    read = validate(ReadConfig, {field: shown[field] for field in ReadConfig.model_fields})
    from luthier.cli.datatools import tools_of
    from luthier.prepare.places import places
    from luthier.prepare.work import do, say

    made = places(
        verb,
        config,
        options.inputs,
        output=options.output,
        report=options.report,
        removed=options.removed,
        hub=options.hub,
    )
    finished = do(verb, config, read, options.inputs, made, console, tools=tools_of(verb, config))
    say(finished, made, console)
    if verb.writes and not made.outputs:
        console.say("nothing was written: give --output FILE.jsonl or FILE.parquet")
    written = {part: str(path) for part, path in made.outputs.items()}
    if console.json:
        console.result("", **finished.as_json(), outputs=dict(written))
    else:
        for path in written.values():
            console.result(path)
    return 0


def _options(words: Sequence[str], kind: type[C], console: Console) -> C:
    """Settings from words; data sets may come first or behind a switch, without a flag."""
    inputs, flags = _without_flag(words, kind)
    parsed = parse(["--inputs", *inputs, *flags] if inputs else flags, kind)
    for note in parsed.notes:
        console.warn(note)
    return validate(kind, parsed.tree)


def _without_flag(words: Sequence[str], kind: type[C]) -> tuple[list[str], list[str]]:
    """The words that no flag takes, and the others."""
    inputs: list[str] = []
    flags: list[str] = []
    switch, open_ = False, True
    for word in words:
        if word.startswith("--"):
            field = kind.model_fields.get(word[2:].replace("-", "_"))
            switch, open_ = field is not None and field.annotation is bool, False
        elif open_ or (switch and word.lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off")):
            inputs.append(word)
            open_ = True
            continue
        flags.append(word)
    return inputs, flags


def _run(words: Sequence[str], console: Console) -> int:
    from luthier.cli.datatools import tools_of
    from luthier.prepare.recipe import run
    from luthier.prepare.steps import RecipeConfig

    if "-h" in words or "--help" in words:
        examples = ("luthier data run recipe.yaml", "luthier data run recipe.yaml --output other.jsonl --seed 1")
        console.result(page(Command("data run", "RECIPE.yaml [flags]", _RUN_ABOUT, examples, _SWITCHES), RecipeConfig))
        return 0
    if not words or words[0].startswith("-"):
        fix = "luthier data run RECIPE.yaml"
        raise ConfigError("no recipe was named", where="luthier data run", fix=fix, code="bad_usage")
    parsed = parse(words[1:], RecipeConfig)
    recipe = validate(RecipeConfig, merge(read_yaml(Path(words[0])), parsed.tree))
    try:
        made = run(recipe, console, tools_of)
    except KeyboardInterrupt as error:
        fix = "The same command goes on with the step that was under way"
        raise Stopped("the recipe was stopped; finished steps are kept", fix=fix) from error
    outputs = {part: str(path) for part, path in made.outputs.items()}
    if not outputs:
        console.say("nothing was written outside the cache: give output, a .jsonl or .parquet file or a folder")
    if outputs or console.json:
        console.result(
            "\n".join(outputs.values()), outputs=dict(outputs), steps_done=made.done, steps_cached=made.cached
        )
    return 0


@contextmanager
def _stoppable() -> Generator[None]:
    """SIGTERM ends the work as Ctrl-C does: what is half done is cleared away."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
