"""Settings of the engine: steps, optimizer, schedule, evaluation, checkpoints, log lines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.base.config import Config, Named

OptimizerName = Literal[
    "adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adam", "lion_8bit", "sgd", "adagrad", "adafactor", "muon"
]
ScheduleName = Literal["linear", "cosine", "constant"]


class StepConfig(Config):
    """How a step is made and how long training lasts."""

    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training set; max_steps wins when set."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps."""
    micro_batch: int = Field(default=1, ge=1)
    """Samples (or packs) of one device in one micro-batch."""
    accumulation: int = Field(default=16, ge=1)
    """Micro-batches of one device in one step. micro_batch x accumulation x devices samples make a step."""
    gradient_checkpointing: bool | Literal["some"] | None = None
    """Compute activations again in the backward pass to save memory; some: only the widest ones; false: none, or the
    cheapest where not all fit on the device. Unset: as little as its memory allows, and nothing on a CPU."""
    shard: Literal["none", "full"] = "none"
    """full: each process holds a part of every weight, gradient and optimizer state (FSDP2); none: it holds all."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the trained weights; it is what is evaluated and saved at the end."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings while training (NEFTune); 5 is usual, 0 is none."""
    skip_limit: int = Field(default=5, ge=1)
    """Non-finite steps in a row before going back to the last good checkpoint, once."""


class OptimConfig(Config):
    """The optimizer and its learning rate."""

    name: OptimizerName = "adamw"
    """Optimizer. 8bit holds its state in bytes, embeddings excepted; paged moves it out of a GPU that is full; muon
    uses adamw for whatever is not a matrix."""
    learning_rate: float | None = Field(default=None, ge=0)
    """Peak learning rate. Unset: 1e-4 for adapters, 1e-5 for full tuning, 3e-4 for pre-training from scratch."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decay of matrices; biases, norms and other vectors are not decayed."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """First-moment decay; momentum for sgd and muon."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Second-moment decay."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Clip the gradient to this norm; 0 does not clip."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Learning rate of each layer relative to the one above it."""
    schedule: ScheduleName = "cosine"
    """Shape of the learning rate after warm-up."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps that warm up linearly."""
    warmup_steps: int = Field(default=0, ge=0)
    """Warm-up steps; wins over warmup_ratio."""
    min_ratio: float = Field(default=0.0, ge=0, le=1)
    """Floor of the schedule, as a share of the peak."""


class EvalConfig(Config):
    """Evaluation on the validation set while training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations. Unset: as often as checkpoints."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples of one device in one evaluation batch. Unset: as in training."""
    metric: Named = "loss"
    """Metric that says which checkpoint is best."""
    higher_is_better: bool = False
    """Whether a higher value of the metric is better."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many evaluations without improvement. Unset: never."""
    min_delta: float = Field(default=0.0, ge=0)
    """Smallest change that counts as improvement."""

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value of the metric is an improvement on the best one so far."""
        return best is None or (value - best if self.higher_is_better else best - value) > self.min_delta


class SaveConfig(Config):
    """Checkpoints."""

    every: int | None = Field(default=500, ge=1)
    """Steps between checkpoints; unset: only at the end."""
    total_limit: int | None = Field(default=2, ge=1)
    """Checkpoints kept; the best and the last verified one always are. Unset: all."""
    resume: Named | None = None
    """Checkpoint or run directory to continue from."""
    allow_change: tuple[str, ...] = ()
    """Settings that may differ from the resumed run's, by dotted path."""


class LogConfig(Config):
    """What is written down while training."""

    every: int = Field(default=5, ge=1)
    """Steps between log lines."""
    report_to: tuple[Literal["tensorboard", "wandb", "swanlab", "trackio", "mlflow", "none"], ...] = ("tensorboard",)
    """Trackers that receive the metrics, besides metrics.jsonl."""
    run_name: str | None = None
    """Name shown by trackers. Unset: the run directory's name."""

    @model_validator(mode="after")
    def _none_stands_alone(self) -> LogConfig:
        if "none" in self.report_to and len(set(self.report_to)) > 1:
            others = ", ".join(name for name in self.report_to if name != "none")
            raise ValueError(f"report_to has none and {others}; give --report_to none alone, or leave none out")
        return self
