"""The memory of a step, counted before anything is loaded.

A formula for the bytes of activations goes wrong wherever the program is not what the formula thinks.  So the program
itself is asked: the model without numbers (`model.shadow`) takes one step through the objective, its method, and the
layers as they will be run, and every tensor that lives meanwhile is counted (`ledger`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from luthier.data.batch import Batch
from luthier.data.pack import micro_batches
from luthier.model import shadow
from luthier.model.counted import as_on_gpu
from luthier.model.layer import Keep
from luthier.model.load import Model
from luthier.model.logprobs import chunk_rows
from luthier.objectives.language import Language
from luthier.objectives.setting import Whole
from luthier.run.forecast.ledger import Held, Ledger

_DEPENDS_ON_NUMBERS = (DataDependentOutputException, DynamicOutputShapeException)

WORKSPACE = 32 * 2**20
"""Bytes that cuBLAS takes of torch's allocator, from the first product on (NVIDIA Hopper; less on older ones)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch holds, in bytes, without optimizer state and averages."""

    peak: Held
    """When it is most."""
    kept: int
    """Between the forward and the backward pass, besides weights and gradients."""
    whole: bool = True
    """Whether the loss was counted too: some losses choose rows by their numbers, of which there are none."""

    @property
    def total(self) -> int:
        """The most, the library's room for products included."""
        return self.peak.total + WORKSPACE


def count_step(
    model: Model, objective: Whole, batch: Batch, keep: Keep, *, accumulates: bool, gpu: bool = True
) -> Step:
    """Forward and backward pass of one micro-batch.

    Args:
        model: without numbers, its method applied.
        accumulates: whether the gradients of an earlier micro-batch are there already.
        gpu: as a GPU would run it, rather than a CPU.
    """
    with _counted(model, objective, gpu) as ledger:
        model.train_mode(keep)
        inputs = _blank(batch, model)
        trained = list(model.trained().values())
        hooks = [weight.register_post_accumulate_grad_hook(_entering(ledger)) for weight in trained]
        model.open_gradient()
        for weight in trained:
            if accumulates and weight.grad is None:
                weight.grad = torch.empty_like(weight)
            if weight.grad is not None:
                ledger.enter([weight.grad], "gradients")
        ledger.begin()
        loss = _summed(model, objective, inputs)
        whole = loss is not None
        if loss is None:
            loss = model.hidden(inputs).float().sum()
        kept = ledger.now.others
        loss.backward()
        del loss
        for hook in hooks:
            hook.remove()
        for weight in trained:
            weight.grad = None
    return Step(ledger.peak, kept, whole)


@torch.no_grad()
def count_evaluation(model: Model, objective: Whole, batch: Batch, *, gpu: bool = True) -> int:
    """The most that one batch of an evaluation holds, in bytes, weights included."""
    with _counted(model, objective, gpu) as ledger:
        model.eval_mode()
        ledger.begin()
        inputs = _blank(batch, model)
        if _summed(model, objective, inputs) is None:
            model.hidden(inputs)
    return ledger.peak.total + WORKSPACE


def logits_bytes(model: Model, keep: Keep, tokens: int, *, gpu: bool = True) -> int:
    """Bytes of the scores that are held at once, in the arithmetic's type; 0 where no vocabulary is scored."""
    if model.kind.kind != "causal":
        return 0
    roomy = keep in ("all", "most")
    with as_on_gpu(gpu):
        rows = chunk_rows(model.vocabulary, torch.device("cpu"), roomy=roomy)
    if roomy and model.head.weight.requires_grad:
        rows = tokens
    return min(rows, tokens) * model.vocabulary * model.dtype.itemsize


def padded_share(lengths_N: NDArray[np.int64], capacity: int, seed: int, per_step: int) -> float:
    """Share of the padded micro-batches of an epoch that holds tokens, of at most a hundred steps."""
    order = np.random.default_rng([seed, 0]).permutation(len(lengths_N))[: 100 * per_step]
    tokens = places = 0
    for start in range(0, len(order), per_step):
        step = lengths_N[order[start : start + per_step]].tolist()
        for members in micro_batches(step, capacity, 1, padded=True):
            mine = [step[member] for member in members]
            tokens, places = tokens + sum(mine), places + len(mine) * max(mine, default=0)
    return tokens / places if places else 1.0


def weights_of(model: Model) -> Iterator[Tensor]:
    """Every tensor that a model holds whether it computes or not."""
    yield from model.weights().values()
    yield from model.network.buffers()
    yield from model.seats()


@contextmanager
def _counted(model: Model, objective: Whole, gpu: bool) -> Generator[Ledger]:
    """A ledger that knows the weights.

    What is computed by hand needs no pretence, as it chooses no types by the device: layers, and scores of next tokens.
    """
    by_hand = model.runs_by_hand and model.scores_by_hand and isinstance(objective, Language)
    beside = objective.beside
    pretended = nullcontext() if gpu and by_hand else shadow.on_cpu(model, *beside)
    with as_on_gpu(gpu), pretended, Ledger() as ledger:
        for one in (model, *beside):
            ledger.enter(weights_of(one), "weights")
        yield ledger


def _summed(model: Model, objective: Whole, inputs: Batch) -> Tensor | None:
    """The loss; None where it depends on numbers, and then nothing that its exception's frames held is left."""
    with suppress(*_DEPENDS_ON_NUMBERS):
        return torch.stack(list(objective.sums(model, inputs).losses.values())).sum()
    return None


def _blank(batch: Batch, model: Model) -> Batch:
    """The same shapes and types, without numbers."""
    inputs = {f.name: getattr(batch, f.name) for f in fields(batch)}
    blank = {
        name: torch.empty(value.shape, dtype=value.dtype, device=model.device)
        for name, value in inputs.items()
        if isinstance(value, Tensor)
    }
    return replace(batch, **blank)


def _entering(ledger: Ledger) -> Callable[[Tensor], None]:
    def enter(weight: Tensor) -> None:
        if weight.grad is not None:
            ledger.enter([weight.grad], "gradients")

    return enter
