"""What is about to be trained, before the first step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What is about to be trained."""

    model: str
    """Folder or hub id of the base model."""
    parameters: int
    """Weights of the whole model."""
    trained_parameters: int
    """Weights that may move."""
    method: str
    """full, freeze, lora."""
    objective: str
    """pretrain, sft."""
    samples: int
    """Training samples of one epoch; 0 when streamed."""
    tokens_per_epoch: int | None
    """Tokens of one epoch; None when nobody has counted them."""
    steps: int
    """Optimizer steps of the whole run."""
    epochs: float | None
    """Passes over the training set; None when it is streamed."""
    global_batch: int
    """Samples of one optimizer step, all devices together."""
    device: str
    """cpu, or the GPU's name."""
    world_size: int
    """Processes that train together."""
    run_dir: str
    """Where everything is written."""
    predicted_gib: float | None = None
    """Peak memory of a step on one GPU, as its trial steps predict it."""


def plan_lines(plan: RunPlan) -> dict[str, str]:
    """What will be trained, for a person: a name and a sentence each."""
    share = plan.trained_parameters / max(1, plan.parameters)
    samples = f"{plan.samples:,} samples" if plan.samples else "streamed"
    tokens = f", {plan.tokens_per_epoch:,} tokens an epoch" if plan.tokens_per_epoch is not None else ""
    epochs = f", {plan.epochs:.3g} epoch{'s' * (plan.epochs != 1)}" if plan.epochs is not None else ""
    return {
        "model": f"{plan.model}, {count(plan.parameters)} parameters",
        "trained": f"{count(plan.trained_parameters)} parameters ({share:.2%}) by {plan.method}",
        "objective": plan.objective,
        "data": samples + tokens,
        "steps": f"{plan.steps:,} of {plan.global_batch:,} samples each{epochs}",
        "device": plan.device if plan.world_size == 1 else f"{plan.world_size} x {plan.device}",
        **({"memory": f"{plan.predicted_gib:.1f} GiB predicted"} if plan.predicted_gib is not None else {}),
        "run": plan.run_dir,
    }


def count(n: int) -> str:
    """1234567 -> 1.23M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return str(n)
