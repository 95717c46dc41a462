"""What to do where memory is used up: three changes, as flags, computed from the settings."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch

from luthier.base.errors import DoesNotFit
from luthier.engine.attempt import in_words, out_of_memory
from luthier.model.config import Lora
from luthier.run.parts import Run

Use = Literal["weights", "step", "evaluation"]
"""What did not fit: weights with gradients and optimizer state, the activations of a step, those of an evaluation."""


@contextmanager
def within_memory(run: Run) -> Generator[None]:
    """Say what to do where there is no room left.  Raises DoesNotFit."""
    try:
        yield
    except DoesNotFit as error:
        use = "evaluation" if "evaluation" in error.what else "step"
        raise DoesNotFit(error.what, fix=to_try(run, use)) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        where = "GPU's" if isinstance(error, torch.OutOfMemoryError) else "machine's"
        message = f"the {where} memory is used up ({in_words(error)})"
        raise DoesNotFit(message, fix=to_try(run, "weights")) from error


def to_try(run: Run, use: Use) -> str:
    """The first suggestions, as a sentence."""
    return "Try " + ", or ".join(suggestions(run, use)[:3])


def suggestions(run: Run, use: Use) -> list[str]:
    """At least three changes that need less memory, those that cost least first; half a micro-batch has been tried."""
    smaller = _weights(run)
    if use == "weights":
        return [*smaller, *_activations(run, use)]
    return [*_activations(run, use), *smaller]


def _activations(run: Run, use: Use) -> list[str]:
    train = run.config.train
    evaluated = run.config.eval.micro_batch or train.micro_batch
    found: list[str] = []
    if use == "evaluation" and evaluated > 1:
        found.append(f"--per_device_eval_batch_size {max(1, evaluated // 4)}")
    if use != "evaluation" and train.micro_batch > 1:
        samples = train.micro_batch * train.accumulation
        fewer = max(n for n in range(1, max(1, train.micro_batch // 4) + 1) if samples % n == 0)
        found.append(f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {samples // fewer}")
    least_kept = train.gradient_checkpointing is True or (
        train.gradient_checkpointing is None and run.mesh.device.type == "cuda"
    )
    if use != "evaluation" and not least_kept:
        found.append("--gradient_checkpointing true")
    if run.max_length > 1:
        found.append(f"--max_length {run.max_length // 2}")
    return found


def _weights(run: Run) -> list[str]:
    config, on_gpu = run.config, run.mesh.device.type == "cuda"
    found: list[str] = []
    if not isinstance(config.method, Lora):
        found.append("--train_type lora")
    elif not config.model.quant.on and config.train.shard == "none":
        found.append("--quant_bits 4")
    if config.train.shard == "none" and not config.model.quant.on:
        devices = "" if run.mesh.world > 1 else " on several devices (NPROC_PER_NODE=2)"
        found.append(f"--fsdp full_shard{devices}")
    if on_gpu and config.model.dtype == "float32":
        found.append("--torch_dtype bfloat16")
    if not isinstance(config.method, Lora) and config.optim.name == "adamw" and config.train.shard == "none":
        found.append("--optim adamw_8bit")
    if isinstance(config.method, Lora) and config.method.rank > 1:
        found.append(f"--lora_rank {config.method.rank // 2}")
    return [*found, "a smaller model"]
