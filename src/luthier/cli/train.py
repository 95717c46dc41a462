"""The training commands: from words to one config, and from one process to several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import orjson

from luthier.base.config import Tree, merge, read_yaml, to_yaml, validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.leaves import leaves
from luthier.cli.flags import choose_members, members_with, parse, place_of
from luthier.cli.help import Command, page
from luthier.cli.launch import supervise, torchrun
from luthier.cli.own import take
from luthier.data.config import DataConfig
from luthier.model.config import ModelConfig
from luthier.objectives.config import Multi, Sft
from luthier.run.absent import absent
from luthier.run.config import RunConfig
from luthier.run.pick import pick, picked, picked_stages
from luthier.run.resolve import resolve

_SWITCHES = {
    "--config FILE": "Recipe to start from; flags win over it.",
    "--dry_run": "Print the resolved settings as YAML, tell what they name and is not here, and exit.",
    "--schema": "Print the JSON schema of a recipe and exit.",
    "--json": "Print one JSON object per line on stdout, for programs.",
    "-h, --help": "Print this page.",
}

SFT = Command(
    "sft",
    "--model MODEL --dataset DATA [DATA ...] [flags]",
    "Fine-tune a model on chats, or on rows for another task, which is recognised by their shape or named by "
    "--task_type. DATA is [hf::|ms::]path-or-hub-id[:subset][#N].",
    (
        "luthier sft --model ./Qwen2.5-0.5B-Instruct --dataset my.jsonl",
        "luthier sft --model Qwen/Qwen2.5-7B-Instruct --train_type lora --lora_rank 16 --dataset 'chats.jsonl#500' "
        "--val_dataset held_out.jsonl --learning_rate 1e-4",
        "luthier sft --model ./all-MiniLM-L6-v2 --dataset reviews.csv --task_type seq_cls --train_type full",
        "NPROC_PER_NODE=2 luthier sft --config recipe.yaml --output_dir runs/two",
    ),
    _SWITCHES,
)
PRETRAIN = Command(
    "pretrain",
    "--model MODEL --dataset DATA [DATA ...] [flags]",
    "Train a language model on every token of plain text or chats, from its present weights. Also called pt.",
    (
        "luthier pretrain --model ./base --dataset corpus/ --train_type full --max_length 4096",
        "luthier pt --model ./base --dataset books.txt.zst notes.jsonl --interleave_prob 0.7 0.3",
        "luthier pretrain --model ./base --dataset huge.jsonl --streaming --max_steps 1000",
    ),
    _SWITCHES,
)
TRAIN = Command(
    "train",
    "[RECIPE.yaml] [flags]",
    "Run a recipe: the settings of one run as YAML, as --dry_run prints them. Flags win over the recipe. Without one, "
    "the rows of --dataset say what is trained, or --task_type does.",
    (
        "luthier train recipe.yaml",
        "luthier train recipe.yaml --optim.learning_rate 2e-5 --train.epochs 3",
        "luthier train runs/mine/v1-20260101-120000/config.yaml --resume_from_checkpoint runs/mine/v1-20260101-120000",
    ),
    _SWITCHES,
)


CONFIG = {"config": "a file"}
"""What a training command takes besides settings, and what it is."""
SWITCHES = ("dry_run", "schema", "help")
"""What asks it for something else than to train."""


def read_config(
    recipe: Path | None,
    argv: Sequence[str],
    objective: Literal["sft", "pretrain"] | None,
    console: Console,
    *,
    rows: bool = True,
) -> RunConfig:
    """The resolved settings of a run: recipe, then flags, then defaults.

    Args:
        rows: whether there must be training data.

    Raises:
        ConfigError: for anything that cannot work, before anything heavy is loaded.
    """
    parsed = parse(argv, RunConfig)
    tree: Tree = merge(read_recipe(recipe) if recipe else {}, parsed.tree)
    if "search" in tree:
        raise ConfigError("this recipe describes a search", where=str(recipe), fix=f"Use luthier search {recipe}")
    if objective is not None:
        chosen = tree.get("objective")
        named = chosen.get("type", objective) if isinstance(chosen, dict) else objective
        if named != objective and (objective == "pretrain" or named == "pretrain"):
            raise ConfigError(f"the recipe trains {named!r}, the command {objective!r}", fix="Use luthier train")
        if objective == "pretrain":
            tree = merge(tree, {"objective": {"type": objective}})
    config = settled(tree, parsed.notes)
    config = resolve(config, rows=rows)
    if "eval" in parsed.tree and not config.judged:
        fix = "give --val_dataset, or hold rows out with --split_dataset_ratio 0.05"
        parsed.notes.append(f"nothing will be evaluated, there is no validation data: {fix}")
    for note in parsed.notes:
        console.warn(note)
    return config


def read_recipe(recipe: Path) -> Tree:
    """The settings in a file, as they stand there.

    Raises:
        ConfigError: it cannot be read, names a kind of training instead of a file, or is flat as other tools' files
            are: the message tells where each name belongs.
    """
    known = leaves(RunConfig)
    if str(recipe) in known["objective.type"].choices and not recipe.exists():
        raise ConfigError(f"{recipe} is a kind of training, not a recipe", fix=f"Use --stage {recipe}")
    tree = read_yaml(recipe)
    groups = {leaf.partition(".")[0] for leaf in known if "." in leaf}
    flat = [name for name in tree if name not in known and (name not in groups or isinstance(tree[name], str | int))]
    places = {str(name): place for name in flat if (place := place_of(str(name), known))}
    if places:
        told = ", ".join(f"{name} as {place}" for name, place in places.items())
        raise ConfigError(
            f"settings stand in groups here: {told}",
            where=str(recipe),
            fix="The same names as flags, with --dry_run, print a recipe",
        )
    return tree


def settled(tree: Tree, notes: list[str]) -> RunConfig:
    """The settings of a run, each union with its member and each task with its objective; not resolved.

    Args:
        tree: gets the members that were left open.
        notes: gets what somebody should know.

    Raises:
        ConfigError: for anything that is no setting or has no such value.
    """
    several = members_with(tree, "objective", RunConfig)
    data = validate(DataConfig, tree.get("data", {})) if len(several) > 1 else DataConfig()
    if data.datasets and (evident := pick(data, _model(tree)).type) in several:
        tree["objective"]["type"] = evident
    choose_members(tree, RunConfig)
    config = validate(RunConfig, tree)
    if not tree.get("objective") and config.data.datasets:
        found = pick(config.data, config.model, notes)
        config = config.model_copy(update={"objective": found})
        if not isinstance(found, Sft):
            notes.append(f"the rows are for {found.type}, so that is trained; --task_type names another")
    if config.stages and not tree.get("objective"):
        config = config.model_copy(update={"stages": picked_stages(config)})
    if isinstance(config.objective, Multi):
        config = config.model_copy(update={"objective": picked(config.objective, config.data, config.model)})
    return config


def _model(tree: Tree) -> ModelConfig:
    return validate(ModelConfig, tree.get("model", {}))


def run_command(
    command: Command, argv: Sequence[str], objective: Literal["sft", "pretrain"] | None, console: Console
) -> int:
    """One training command, from its words to its exit code.

    Raises:
        LuthierError: see `luthier.run.train`.
    """
    own = take(argv, CONFIG, SWITCHES, recipe_first=objective is None)
    if "help" in own.switches:
        console.result(page(command, RunConfig))
        return 0
    if "schema" in own.switches:
        schema = RunConfig.model_json_schema()
        console.result(orjson.dumps(schema, option=orjson.OPT_INDENT_2).decode(), **schema)
        return 0
    if objective is None and own.recipe is None and not own.rest:
        raise ConfigError(
            "neither a recipe nor a model and data were named",
            where="luthier train",
            fix="luthier train RECIPE.yaml, or luthier train --model MODEL --dataset DATA",
            code="bad_usage",
        )
    config = read_config(own.recipe, own.rest, objective, console)
    if "dry_run" in own.switches:
        for note in absent(config):
            console.warn(note)
        console.result(to_yaml(config).rstrip(), **config.model_dump(mode="json"))
        return 0
    json = ["--json"] if console.json else []
    several = torchrun([command.name, *argv, *json], os.environ)
    if several:
        console.say("$ " + " ".join(several), style="dim")
        return supervise(several, os.environ)
    if config.stages:
        from luthier.run.stages import train_stages

        run = train_stages(config, console)
    else:
        from luthier.run.train import train

        run = train(config, console)
    console.result(str(run), run_dir=str(run))
    return 0
