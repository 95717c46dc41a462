"""`luthier plan`: what a training would need, before it is started and before a weight is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.cli.help import Command, page
from luthier.cli.own import take
from luthier.cli.train import CONFIG, SWITCHES, read_config
from luthier.run.config import RunConfig

PLAN = Command(
    "plan",
    "[sft | pretrain | train] [RECIPE.yaml] [flags of the training]",
    "Tell what a training would need before it is started: memory on each device, the largest micro-batch, disk, steps "
    "and time; of stages, each. Takes the recipe and the flags of luthier sft, pretrain or train as they are. Reads "
    "the model's config and the data, through the same cache as training; no weights. Without --dataset, sft and "
    "pretrain are planned for samples of --max_length tokens. Exit code 4: it does not fit on the device.",
    (
        "luthier plan recipe.yaml --device 4090",
        "luthier plan sft --model Qwen/Qwen2.5-7B-Instruct --dataset my.jsonl --train_type lora --device A100-80",
        "luthier plan pretrain --model ./base --dataset corpus/ --memory 24 --devices 4 --fsdp full_shard",
        "luthier plan recipe.yaml --device H100 --html plan.html",
        "luthier plan sft --model ./base --max_length 4096 --per_device_train_batch_size 4 --device L40S",
    ),
    {
        "--device NAME": "The device it is for: H200, H100, A100-80, A100-40, L40S, L4, 5090, 4090, 3090, T4 ...; cpu, "
        "cuda or auto for this machine's. [auto]",
        "--memory GIB": "Memory of one device, instead of what the named one has.",
        "--devices N": "Devices that train together. [NPROC_PER_NODE, or 1]",
        "--html FILE": "Also write the plan as an HTML page.",
        "--config FILE": "Recipe to start from; flags win over it.",
        "--json": "Print one JSON object per line on stdout, for programs.",
        "-h, --help": "Print this page.",
    },
)
_TAKES = {
    **CONFIG,
    "device": "the name of a device",
    "memory": "a number of GiB",
    "devices": "a number",
    "html": "a file",
}
_LIKE: dict[str, Literal["sft", "pretrain"] | None] = {
    "sft": "sft",
    "pretrain": "pretrain",
    "pt": "pretrain",
    "train": None,
}


@dataclass(frozen=True)
class Asked:
    """What of the words is for the plan, and what for the training."""

    objective: Literal["sft", "pretrain"] | None
    recipe: Path | None
    device: str | None
    memory: float | None
    devices: int
    html: str | None
    flags: list[str]


def plan(argv: Sequence[str], console: Console, environ: dict[str, str]) -> int:
    """Print the plan; 4 where it does not fit.

    Raises:
        ConfigError, DataError, ModelError: as training would, before its first step.
    """
    if "-h" in argv or "--help" in argv:
        console.result(page(PLAN, RunConfig))
        return 0
    asked = read(argv, environ)
    if asked.recipe is None and not asked.flags:
        raise ConfigError(
            "neither a recipe nor a model and data were named",
            where="luthier plan",
            fix="luthier plan RECIPE.yaml, or luthier plan --model MODEL --dataset DATA",
            code="bad_usage",
        )
    config = read_config(asked.recipe, asked.flags, asked.objective, console, rows=False)
    from luthier.run.forecast.forecast import forecast
    from luthier.run.forecast.hardware import device_named
    from luthier.run.forecast.staged import forecast_stages
    from luthier.run.forecast.text import html, sections, to_json

    device = device_named(asked.device or config.device, asked.memory)
    if config.stages:
        plans = forecast_stages(config, device, asked.devices, console)
    else:
        plans = {"": forecast(config, device, asked.devices, console)}
    for name, found in plans.items():
        stage = {"stage": name} if name else {}
        if console.json:
            console.result("", **stage, **to_json(found))
            continue
        for section in sections(found):
            if section.rows:
                console.table(f"{name}: {section.title}" if name else section.title, section.rows, result=True)
            for line in section.lines:
                console.result(line)
    if asked.html:
        _write(asked.html, html(plans), console)
    return 0 if all(found.fits for found in plans.values()) else 4


def _write(file: str, text: str, console: Console) -> None:
    from luthier.base.rundir import write_atomic

    path = Path(file).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.encode())
    console.say(f"Page: {file}")


def read(argv: Sequence[str], environ: dict[str, str]) -> Asked:
    """Tell the plan's own words from the training's.

    Raises:
        ConfigError: a value is missing, or is no number where one is wanted.
    """
    words = list(argv)
    objective: Literal["sft", "pretrain"] | None = None
    if words and words[0] in _LIKE:
        objective = _LIKE[words.pop(0)]
    own = take(words, _TAKES, SWITCHES)  # a plan is one already, so that they ask for nothing
    given, memory = own.values, None
    if "memory" in given:
        memory = _number("--memory", given["memory"].lower().removesuffix("gib").removesuffix("gb"))
    devices = _number("--devices", given.get("devices", environ.get("NPROC_PER_NODE", "1")))
    if devices != int(devices):
        raise ConfigError(f"expected a whole number, got {given.get('devices')!r}", where="--devices", code="bad_value")
    return Asked(objective, own.recipe, given.get("device"), memory, int(devices), given.get("html"), own.rest)


def _number(flag: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigError(f"expected a number above 0, got {text!r}", where=flag, code="bad_value")
    return value
