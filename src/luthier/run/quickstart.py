"""The parts of the quickstart: its base model, its two runs, and asking a model before and after."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from luthier.base.console import Console
from luthier.base.records import Message
from luthier.data.config import DataConfig
from luthier.data.render import Renderer
from luthier.data.textfile import cache_root
from luthier.engine.config import LogConfig, OptimConfig, SaveConfig, StepConfig
from luthier.generate.config import SamplingConfig
from luthier.generate.local import Local
from luthier.model import methods
from luthier.model.config import Full, Lora, ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.model.nano import make
from luthier.model.nano.make import Nano
from luthier.objectives.config import Pretrain, Sft
from luthier.run.config import RunConfig
from luthier.run.train import train

DATA = ("self_cognition.jsonl", "chat.jsonl")


def base_model(place: Path, nano: Nano, console: Console, *, fresh: bool) -> Path:
    """The base model as the folder `base` in `place`, copied from the cache, where it is made if it is not there."""
    place.mkdir(parents=True, exist_ok=True)
    cached = cache_root(DataConfig()) / "nano" / make.key(nano)
    if fresh:
        shutil.rmtree(cached, ignore_errors=True)

    work = place / "pretraining"

    def pretrain(start: Path, files: Sequence[Path]) -> Path:
        return latest(train(pretraining(start, files, nano, work), console))

    make.make_nano(cached, work, nano, pretrain)
    return Path(shutil.copytree(cached, place / "base", dirs_exist_ok=True))


def bundled_data(place: Path) -> list[Path]:
    """The fine-tuning sets, copied to where a person will look at them."""
    folder = place / "data"
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(make.TEXT / name, folder / name)) for name in DATA]


def pretraining(start: Path, files: Sequence[Path], nano: Nano, output_dir: Path) -> RunConfig:
    """The run that makes the base model."""
    return RunConfig(
        objective=Pretrain(),
        model=ModelConfig(path=str(start), dtype="float32"),
        method=Full(),
        data=DataConfig(datasets=tuple(map(str, files)), max_length=nano.pack_length),
        train=StepConfig(max_steps=nano.steps, micro_batch=nano.packs_per_step, accumulation=1),
        optim=OptimConfig(name="muon", learning_rate=nano.learning_rate, warmup_ratio=0.05),
        save=SaveConfig(every=None, total_limit=1),
        log=LogConfig(every=10),
        output_dir=str(output_dir),
        seed=nano.seed,
        device="cpu",
    )


def finetuning(
    base: Path,
    data: Sequence[Path],
    *,
    name: tuple[str, ...],
    author: tuple[str, ...],
    output_dir: Path,
    steps: int,
    seed: int,
) -> RunConfig:
    """The run that teaches the name; recipes/quickstart.yaml says the same."""
    return RunConfig(
        objective=Sft(),
        model=ModelConfig(path=str(base), dtype="float32"),
        method=Lora(rank=16, alpha=32),
        data=DataConfig(datasets=tuple(map(str, data)), self_name=name, self_author=author, max_length=256),
        train=StepConfig(max_steps=steps, micro_batch=16, accumulation=1),
        optim=OptimConfig(learning_rate=5e-3, weight_decay=0.0, warmup_ratio=0.05),
        save=SaveConfig(every=100),
        output_dir=str(output_dir),
        seed=seed,
        device="cpu",
    )


def latest(run: Path) -> Path:
    """The last checkpoint of a run."""
    checkpoints = run / "checkpoints"
    return checkpoints / (checkpoints / "LATEST").read_text(encoding="utf-8").strip()


def ask(base: Path, adapter: Path | None, questions: Sequence[str]) -> list[str]:
    """Greedy answers of the base model, or of the base model with an adapter."""
    config = ModelConfig(path=str(base), dtype="float32")
    tokenizer = load_tokenizer(config)
    model = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    methods.attach(model, [str(adapter)] if adapter else [])
    renderer = Renderer(tokenizer)
    prompts = [renderer.prompt([Message("user", question)]) for question in questions]
    sampling = SamplingConfig(max_new_tokens=64)
    return [answer.text.strip() for answer in Local(model, stop_ids=renderer.stop_ids).generate(prompts, sampling)]
