"""`luthier search`: good settings for a training, without sitting beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from luthier.base.config import Tree, flat, merge, read_yaml, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, RunError, Stopped
from luthier.base.leaves import Leaf, leaves
from luthier.base.rundir import Lock, write_atomic
from luthier.cli.flags import choose_members, convert, parse, setting
from luthier.cli.help import Command, page
from luthier.cli.own import Own, take
from luthier.cli.train import CONFIG, read_recipe, settled
from luthier.run.config import RunConfig
from luthier.run.search.space import Choices, Dimension, Range, SearchConfig, SearchRun, check, nested, values_of

if TYPE_CHECKING:
    from luthier.run.search.wanted import Wanted

RECIPE, OUTPUT = "search.yaml", "runs/search"
_FREE = ("search.trials", "search.timeout", "search.parallel", "search.keep", "output_dir", "device")
"""Settings that may change when a search goes on."""
_TAKES = {**CONFIG, "space": "a file", "resume": "the folder of a search"}

SEARCH = Command(
    "search",
    "[RECIPE.yaml] --space SPACE.yaml [flags]",
    "Search for the settings of a training: trials one after the other, or one on each GPU, hopeless ones stopped "
    "early. The recipe and the flags are those of luthier train. A space names what is tried of each setting: choices "
    "as a list, ranges as `log LOW HIGH` or `linear LOW HIGH [step STEP]`. The same command again, or --resume, goes "
    "on where it stopped.",
    (
        "luthier search recipe.yaml --space space.yaml --trials 30 --eval_steps 50",
        "luthier search --model ./base --dataset chats.jsonl --split_dataset_ratio 0.1 \\\n"
        "      --space.learning_rate log 1e-5 1e-3 --space.lora_rank 4 8 16 32 --trials 20",
        "luthier search --resume runs/search --trials 40",
    ),
    {
        "--space FILE": "YAML of what is tried of each setting.",
        "--space.NAME VALUES": "What is tried of one setting; wins over the file.",
        "--resume DIR": "Go on with the search in this directory.",
        "--config FILE": "Recipe to start from; flags win over it. It may have a search: section.",
        "--dry_run": "Check everything, print what would be searched as YAML and exit.",
        "--json": "Print one JSON object per line on stdout, for programs.",
        "-h, --help": "Print this page.",
    },
)


def search_command(argv: Sequence[str], console: Console) -> int:
    """Search, and say what was found.

    Raises:
        ConfigError: a space, a metric or settings that cannot work, before the first trial.
        Stopped: someone asked for it; every trial is kept and the search can go on.
        LuthierError: no trial could be made.
    """
    own = own_words(argv)
    if "help" in own.switches:
        console.result(page(SEARCH, SearchRun))
        return 0
    tree = read_tree(own, console)
    settings = validate(SearchConfig, tree.get("search", {}))
    run = {name: below for name, below in tree.items() if name != "search"}
    run.setdefault("output_dir", OUTPUT)
    dimensions = read_space(settings.space)
    _name_members(run, dimensions)
    notes: list[str] = []
    run["objective"] = settled(merge(run, _first(dimensions)), notes).objective.model_dump(mode="json")
    for note in notes:
        console.warn(note)
    config, direction = check(run, settings, dimensions)
    recipe = yaml.safe_dump({"search": settings.model_dump(mode="json"), **run}, sort_keys=False, allow_unicode=True)
    if "dry_run" in own.switches:
        console.result(recipe.rstrip(), **yaml.safe_load(recipe))
        return 0
    from luthier.run.search.study import load_optuna
    from luthier.run.search.wanted import Wanted

    load_optuna()
    folder = Path(config.output_dir).expanduser()
    wanted = Wanted(run, settings, dimensions, direction, config, folder)
    return _searched(wanted, recipe, console)


def _searched(wanted: Wanted, recipe: str, console: Console) -> int:
    from luthier.run.search.loop import search
    from luthier.run.search.result import commands, found, table, write

    folder = wanted.folder
    lock = _open(wanted, yaml.safe_load(recipe), console)
    try:
        write_atomic(folder / RECIPE, recipe.encode())
        study = search(wanted, console)
        results = found(wanted, study)
        write(wanted, results)
    finally:
        lock.release()
    console.table("Trials", table(wanted, results))
    for title, command in commands(wanted, results).items():
        console.say(f"{title}:\n  {command}")
    unfinished = sum(tried.state == "unfinished" for tried in results.trials)
    left = wanted.settings.trials - len(results.trials) + unfinished
    if results.best is not None and (not unfinished or wanted.settings.timeout is not None):
        console.result(str(folder), search_dir=str(folder), recipe=str(folder / "best.yaml"))
    if unfinished:
        raise Stopped(
            f"stopped with {left} trials left, all others are kept", where=str(folder),
            fix=f"Go on with: luthier search --resume {folder}",
        )  # fmt: skip
    if results.best is None:
        raise RunError("no trial came to its end", where=str(folder / "report.md"), fix="Look at why the trials failed")
    return 0


def _open(wanted: Wanted, recipe: Tree, console: Console) -> Lock:
    """The folder, held for this search alone.

    Raises:
        ConfigError: another search lies there, or something else.
    """
    from luthier.run.search.study import JOURNAL, open_study
    from luthier.run.search.wanted import TRIALS

    folder = wanted.folder
    file = folder / RECIPE
    if folder.is_dir() and any(folder.iterdir()) and not file.exists():
        raise ConfigError("this folder holds something else", where=str(folder), fix="Choose another --output_dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(folder / ".lock")
    except OSError as error:
        raise ConfigError(f"this folder cannot be used: {error.strerror}", where=str(folder)) from error
    if not file.exists():
        return lock
    old, new = flat(read_yaml(file)), flat(recipe)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    changed = [key for key in changed if not any(key == free or key.startswith(free + ".") for free in _FREE)]
    states = (
        [trial.state.name for trial in open_study(folder, "minimize").trials] if (folder / JOURNAL).exists() else []
    )
    good = sum(state in ("COMPLETE", "PRUNED") for state in states)
    if changed and good:
        lines = "; ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        lock.release()
        raise ConfigError(
            f"another search lies here, with {good} trials: {lines}",
            where=str(folder),
            code="changed_run",
            fix="Undo the change, or choose another --output_dir",
        )
    if changed:  # nothing is lost: none of its trials has found anything
        (folder / JOURNAL).unlink(missing_ok=True)
        shutil.rmtree(folder / TRIALS, ignore_errors=True)
    elif states:
        console.say(f"Going on with {folder}: {good} trials have ended well")
    return lock


def own_words(argv: Sequence[str]) -> Own:
    """The command's own words.  --space takes a file here; its settings, a tree in braces, are flags like any other.

    Raises:
        ConfigError: no file after a flag that takes one.
    """
    own = take(argv, _TAKES, ("dry_run", "help"))
    space = own.values.get("space", "")
    if not space.lstrip().startswith("{"):
        return own
    values = {name: value for name, value in own.values.items() if name != "space"}
    return replace(own, values=values, rest=[*own.rest, f"--space={space}"])


def read_tree(own: Own, console: Console) -> Tree:
    """Recipe, space and flags as one tree, flags last.

    Raises:
        ConfigError: a file that cannot be read, an unknown flag, nothing to go on with.
    """
    parsed = parse(own.rest, SearchRun)
    for note in parsed.notes:
        console.warn(note)
    tree: Tree = {}
    resumed, named = own.values.get("resume"), own.recipe
    if resumed is not None:
        if named is not None:
            raise ConfigError("a search goes on with its own recipe", where="--resume", fix="Leave the recipe out")
        if not (Path(resumed) / RECIPE).exists():
            fix = "Give the --output_dir of a search"
            raise ConfigError("there is no search to go on with", where=resumed, code="no_run", fix=fix)
        tree = {**read_yaml(Path(resumed) / RECIPE), "output_dir": resumed}
    elif named is not None:
        tree = read_recipe(named)
    if "space" in own.values:
        tree = merge(tree, {"search": {"space": read_yaml(Path(own.values["space"]))}})
    return merge(tree, parsed.tree)


def read_space(space: Mapping[str, Any]) -> tuple[Dimension, ...]:
    """What is tried of each setting.

    Raises:
        ConfigError: an unknown setting, nothing to choose from, values that the setting does not take.
    """
    known = leaves(RunConfig)
    found: dict[str, Dimension] = {}
    for name, told in flat(space).items():
        leaf = setting(name, known, prefix="--space.")
        if leaf.path in found:
            raise ConfigError("given twice", where=f"--space.{name}", code="repeated_flag")
        found[leaf.path] = read_dimension(f"--space.{name}", leaf, told)
    return tuple(found.values())


def read_dimension(flag: str, leaf: Leaf, told: Any) -> Dimension:
    """One setting of a space: a list of choices, or a range as text.

    Raises:
        ConfigError: see `read_space`.
    """
    words = told.split() if isinstance(told, str) else told
    if isinstance(words, list) and words and words[0] in ("log", "linear") and words[0] not in leaf.choices:
        return _range(flag, leaf, [str(word) for word in words])
    if not isinstance(told, list):
        fix = "Write choices as a list, [4, 8, 16], or a range as text: log LOW HIGH, linear LOW HIGH"
        raise ConfigError(f"neither choices nor a range: {told!r}", where=flag, code="bad_value", fix=fix)
    values = tuple(_choice(flag, leaf, value) for value in told)
    labels = Choices(leaf.path, values).labels()
    if len(values) < 2 or len(set(labels)) < len(labels):
        why = "there is nothing to choose from" if len(values) < 2 else "the same choice is listed twice"
        fix = f"A setting that is always the same is given as --{leaf.path}" if len(values) == 1 else None
        raise ConfigError(why, where=flag, code="bad_value", fix=fix)
    return Choices(leaf.path, values)


def _choice(flag: str, leaf: Leaf, value: Any) -> Any:
    if isinstance(value, list):
        words = [str(part) for part in value]
    else:
        words = [value if isinstance(value, str) else json.dumps(value)]
    made = convert(flag, leaf, words)
    return list(made) if isinstance(made, tuple) else made


def _range(flag: str, leaf: Leaf, words: list[str]) -> Range:
    """`log LOW HIGH` or `linear LOW HIGH [step STEP]`."""
    shape = f"{words[0]} LOW HIGH" + (" [step STEP]" if words[0] == "linear" else "")
    stepped = len(words) == 5 and words[0] == "linear" and words[3] == "step"
    whole = leaf.expected == "a whole number"
    if leaf.expected not in ("a whole number", "a number"):
        raise ConfigError(f"no number: it takes {leaf.expected}", where=flag, code="bad_value", fix="List choices")
    try:
        low, high, step = (float(words[n]) if n < len(words) else 0.0 for n in (1, 2, 4))
    except ValueError:
        low, high, step = 0.0, 0.0, 0.0
    if not (len(words) == 3 or stepped) or not low < high or (stepped and step <= 0):
        raise ConfigError(
            f"expected {shape} with LOW below HIGH, got {' '.join(words)!r}", where=flag, code="bad_value"
        )
    if words[0] == "log" and low <= 0:
        raise ConfigError("a logarithmic range begins above 0", where=flag, code="bad_value")
    for end in words[1:3]:
        convert(flag, leaf, [str(int(float(end))) if whole and float(end).is_integer() else end])
    if whole and not (step or 1.0).is_integer():
        raise ConfigError("the step of whole numbers is a whole number", where=flag, code="bad_value")
    return Range(leaf.path, low, high, words[0] == "log", whole, step or None)


def _first(dimensions: Sequence[Dimension]) -> Tree:
    return nested(values_of(dimensions, {each.path: each.ends()[0] for each in dimensions}))


def _name_members(tree: Tree, dimensions: Sequence[Dimension]) -> None:
    """Say of each union which member it is, where the settings that are tried give it away."""
    probe = merge(tree, _first(dimensions))
    choose_members(probe, RunConfig)
    for group, below in probe.items():
        if isinstance(below, dict) and "type" in below and f"{group}.type" not in {d.path for d in dimensions}:
            tree[group] = {**tree.get(group, {}), "type": below["type"]}
