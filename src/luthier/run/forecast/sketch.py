"""A run's model without numbers: what is counted before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from transformers import PreTrainedTokenizerFast

from luthier.base.sizes import told
from luthier.model import methods, shadow, shared
from luthier.model.config import Lora, Method
from luthier.model.load import Model, arithmetic_dtype
from luthier.model.method import Boft, Prefix, Prompt
from luthier.objectives.distil import Distillation
from luthier.objectives.setting import Part
from luthier.objectives.teacher import Live, Unasked
from luthier.run.forecast.hardware import Device
from luthier.run.parts import Run


def arithmetic(name: str, device: Device) -> torch.dtype:
    """The type that a device would compute in."""
    if name == "auto":
        return torch.bfloat16 if device.bfloat16 else torch.float32
    return arithmetic_dtype(name, device.kind)


def without_numbers(
    run: Run, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype, device: Device, parts: Sequence[Part]
) -> tuple[Model, str]:
    """A run's model, its method applied, and who runs its layers.

    Raises:
        ConfigError, RuntimeError, NotImplementedError: a method that looks at numbers where it is put on.
    """
    config = run.config
    tasks = {part.name: part.objective.head for part in parts}
    with shadow.META, shadow.unpermuted() if isinstance(config.method, Boft) else nullcontext():
        model = shared.load_shared(
            config.model,
            shadow.META,
            tokenizer=tokenizer,
            tasks=tasks,
            open_model=lambda settings, head: shadow.shadow(settings, dtype, tokenizer=tokenizer, head=head),
        )
        methods.apply(model, _unstarted(config.method), (), widen=not run.split)
    if not device.gpu:
        return model, "transformers"
    if run.split:
        return model, "transformers: weights are split over the devices"
    if config.model.layers == "plain" or not device.kernels:
        return model, "transformers" + ("" if device.kernels else f": {device.name} is older than Luthier's kernels")
    reason = model.by_hand(shadow.Sizes())
    return model, "Luthier's kernels" if reason is None else f"transformers: {reason}"


def sketch_teachers(parts: Sequence[Part], dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Put models without numbers in the place of teachers.

    Returns:
        What somebody should know of them.
    """
    notes: list[str] = []
    for student, live in students_of(parts):
        teacher = shadow.shadow(live.config, dtype, tokenizer=tokenizer)
        teacher.eval_mode()
        if student.config.top_k is None:
            live.model = teacher
            continue
        held = sum(weight.nbytes for weight in teacher.network.parameters())
        notes.append(f"The teacher is asked before the student is loaded, and its weights alone take {told(held)} then")
        student.teacher = Unasked(student.config.top_k)
    return notes


def students_of(parts: Sequence[Part]) -> list[tuple[Distillation, Live]]:
    """Those who learn from a teacher, each with it."""
    learned = [part.objective for part in parts if isinstance(part.objective, Distillation)]
    return [(student, student.teacher) for student in learned if isinstance(student.teacher, Live)]


def _unstarted(method: Method) -> Method:
    """The method without the numbers that it would start from: there are no weights to take them of."""
    if isinstance(method, Lora) and method.init in ("pissa", "olora"):
        return method.model_copy(update={"init": "default"})
    if isinstance(method, Prompt | Prefix):
        return method.model_copy(update={"start": "random", "text": None})
    return method
