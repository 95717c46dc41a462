"""The parts of the quickstart: its data, its run, and asking a model before and after."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from luthier.base.records import Message
from luthier.data.config import DataConfig
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig, SaveConfig, StepConfig
from luthier.generate.config import SamplingConfig
from luthier.generate.local import Local
from luthier.model import methods, nano
from luthier.model.config import Lora, ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.run.config import RunConfig

DATA = ("self_cognition.jsonl", "chat.jsonl")


def bundled_data(place: Path) -> list[Path]:
    """The fine-tuning sets, copied to where a person will look at them."""
    folder = place / "data"
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(nano.TEXT / name, folder / name)) for name in DATA]


def finetuning(
    data: Sequence[Path], *, name: tuple[str, ...], author: tuple[str, ...], output_dir: Path, steps: int, seed: int
) -> RunConfig:
    """The run that teaches the name; recipes/quickstart.yaml says the same."""
    return RunConfig(
        objective=Sft(),
        model=ModelConfig(path=nano.NAME, dtype="float32"),
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


def ask(adapter: Path | None, questions: Sequence[str]) -> list[str]:
    """Greedy answers of the nano model, as it is or with an adapter."""
    config = ModelConfig(path=nano.NAME, dtype="float32")
    tokenizer = load_tokenizer(config)
    model = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    methods.attach(model, [str(adapter)] if adapter else [])
    renderer = Renderer(tokenizer)
    prompts = [renderer.prompt([Message("user", question)]) for question in questions]
    sampling = SamplingConfig(max_new_tokens=64)
    return [answer.text.strip() for answer in Local(model, stop_ids=renderer.stop_ids).generate(prompts, sampling)]
