"""One optimizer step: count first, then sum each term over the micro-batches, so that any split gives one gradient."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.engine.attempt import Attempt
from luthier.engine.mesh import Mesh
from luthier.engine.objective import Objective, Terms
from luthier.model.load import Model
from luthier.model.sharding import whole

Pairs = dict[str, tuple[float, float]]
"""Loss terms and metrics by name, each as (sum, count)."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step saw, over all devices."""

    loss: float
    """Every loss term over its own count, added up."""
    means: Pairs
    """Each metric, and each loss term where there are several."""
    grad_norm: float
    """Before clipping."""
    trained: float
    """Sum of the loss terms' counts; 0 when there was nothing to learn from."""
    tokens: int
    """Tokens read."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return all(abs(value) < float("inf") for value in (self.loss, self.grad_norm))


@dataclass(frozen=True, slots=True)
class Pending:
    """A step whose gradient the device may still be computing, and the numbers that are on their way to the host."""

    unsound: Tensor
    """float32 on the device: 1 where loss or gradient are no numbers, nothing was trained or a process failed"""
    attempt: Attempt
    names: Sequence[str]
    terms: Sequence[str]
    values: Tensor
    """float64 on the host, once `arrived`"""
    arrived: torch.cuda.Event | None

    def read(self) -> StepResult:
        """Wait for the numbers: the one place where a step waits for the device.

        Raises:
            NoRoom: on all processes, when one has run out of memory; what is in `.grad` then means nothing.
        """
        if self.arrived is not None:
            self.arrived.synchronize()
        numbers = dict(zip(self.names, self.values.tolist(), strict=True))
        self.attempt.agree(numbers["failed"])
        pairs = _pairs(numbers)
        return StepResult(
            loss=_loss(pairs, self.terms),
            means=_besides(pairs, self.terms),
            grad_norm=numbers["norm"],
            trained=sum(pairs[name][1] for name in self.terms),
            tokens=round(numbers["tokens"]),
        )


def begin(model: Model, objective: Objective, step: Sequence[Batch], mesh: Mesh, *, max_norm: float) -> Pending:
    """Leave the step's gradient, clipped to `max_norm` (0: not clipped), in the trained weights' `.grad`.

    Counts are summed over all micro-batches and devices before the first backward pass, so the loss is
    sum(term) / sum(count) over the whole step however it was cut up.
    """
    attempt = Attempt(model)
    attempt.run(lambda *batches: objective.prepare(model, batches), *step)
    total = mesh.sum(_add(objective.counts(batch) for batch in attempt.batches(step)))
    model.open_gradient()
    seen: list[dict[str, Tensor]] = []
    for number, batch in enumerate(step, 1):
        if model.sharded is not None:
            model.sharded.reduce(last=number == len(step))
        seen.append(attempt.run(lambda batch: _backward(model, objective, batch, total), batch))
    trained = list(model.trained().values())
    if model.sharded is None:
        _complete(trained)
        mesh.sum_gradients(trained)
    norm = whole(torch.nn.utils.clip_grad_norm_(trained, max_norm or float("inf")))
    tokens = sum(batch.tokens for batch in step)
    summed = mesh.sum({**_add(seen), **_numbers(mesh, tokens=tokens, failed=attempt.failed)})
    summed = {**summed, **_counts(total), "norm": norm.to(torch.float64)}
    counted = torch.stack([*total.values()]).sum() > 0
    finite = torch.stack([*(summed[f"sum/{name}"] for name in total), summed["norm"]]).isfinite().all()
    sound = finite & counted & (summed["failed"] == 0)
    values, arrived = _to_host(torch.stack([*summed.values()]))
    return Pending((~sound).float(), attempt, [*summed], [*total], values, arrived)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a model does on a set."""

    metrics: dict[str, float]
    """`loss`, every metric, and each loss term where there are several."""
    outputs: dict[str, Tensor]
    """What the objective gave out for each row, of all processes."""


@torch.no_grad()
def evaluate(model: Model, objective: Objective, batches: Iterable[Batch], mesh: Mesh) -> Verdict:
    """Loss and metrics over a set: sums over counts, and what the objective makes of its outputs.

    Raises:
        NoRoom: on all processes, when one has run out of memory.
    """
    attempt = Attempt(model)
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    outputs: dict[str, list[Tensor]] = {}
    for batch in batches:
        if attempt.failed and model.sharded is None:
            break  # no other process waits for this one before the end
        seen, counted, given = attempt.run(lambda batch: _judged(model, objective, batch), batch.to(mesh.device))
        for name, rows in given.items():
            outputs.setdefault(name, []).append(rows.cpu())
        sums, counts = _add([sums, seen]), _add([counts, counted])
    if model.sharded is not None:
        model.sharded.rest()
    summed = mesh.sum({**sums, **_counts(counts), **_numbers(mesh, failed=attempt.failed)})
    numbers = {name: float(value) for name, value in summed.items()}
    attempt.agree(numbers["failed"])
    pairs = _pairs(numbers)
    gathered = {name: mesh.gather(torch.cat(rows)) for name, rows in outputs.items()}
    found = objective.measure(gathered) if gathered else {}
    # A term that no sum over micro-batches gives is found in the outputs, and takes that sum's place.
    pairs |= {name: (value, 1.0) for name, value in found.items()}
    besides = {name: pair for name, pair in _besides(pairs, counts).items() if pair[1] > 0 or name not in counts}
    return Verdict({"loss": _loss(pairs, counts)} | {name: _ratio(pair) for name, pair in besides.items()}, gathered)


def _ratio(pair: tuple[float, float]) -> float:
    """sum / count; 0 when nothing was counted."""
    return pair[0] / pair[1] if pair[1] > 0 else 0.0


def _backward(model: Model, objective: Objective, batch: Batch, total: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add one micro-batch's gradient to the step's, and return its sums and counts."""
    terms = objective.sums(model, batch)
    torch.stack([summed / _or_one(total[name]) for name, summed in terms.losses.items()]).sum().backward()
    return _flat(terms)


def _complete(trained: Iterable[Tensor]) -> None:
    """What no sample of this process has led to has a gradient of 0: it decays as it would beside other processes."""
    for weight in trained:
        if weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight)


def _judged(
    model: Model, objective: Objective, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Sums and counts of one evaluation batch, the counts of its loss terms, and its outputs."""
    objective.prepare(model, [batch])
    terms = objective.sums(model, batch)
    return _flat(terms), objective.counts(batch), terms.outputs


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and when it will be there.  What is launched after this is not waited for."""
    if not values.is_cuda:
        return values, None
    host = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return host, arrived


def _numbers(mesh: Mesh, **values: float) -> dict[str, Tensor]:
    return {name: torch.full((), float(value), device=mesh.device) for name, value in values.items()}


def _or_one(count: Tensor) -> Tensor:
    return torch.where(count > 0, count, torch.ones_like(count))


def _flat(terms: Terms) -> dict[str, Tensor]:
    """Sums and counts under names that cannot collide, without graph and in float64."""
    flat = {f"sum/{name}": value for name, value in terms.losses.items()}
    for name, (total, count) in terms.metrics.items():
        flat[f"sum/{name}"], flat[f"count/{name}"] = total, count
    return {name: value.detach().to(torch.float64) for name, value in flat.items()}


def _counts(counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"count/{name}": count for name, count in counts.items()}


def _add(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    added: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            added[name] = added[name] + value if name in added else value
    return added


def _pairs(numbers: Mapping[str, float]) -> Pairs:
    names = [name.removeprefix("sum/") for name in numbers if name.startswith("sum/")]
    return {name: (numbers[f"sum/{name}"], numbers[f"count/{name}"]) for name in names}


def _besides(pairs: Pairs, terms: Collection[str]) -> Pairs:
    """What is told besides the loss: a single term is the loss itself."""
    return {name: pair for name, pair in pairs.items() if len(terms) > 1 or name not in terms}


def _loss(pairs: Pairs, terms: Iterable[str]) -> float:
    return sum(_ratio(pairs[name]) for name in terms)
