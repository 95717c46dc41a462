"""Losses in which all rows of a step depend on each other, with the graph of one micro-batch at a time (GradCache).

Every row is embedded once without a graph.  The loss of all rows together gives each row's gradient; then each
micro-batch is embedded again, and sent its rows' gradients back.  That is exact, so the loss of a step does not
depend on how it was cut into micro-batches and processes.  A step that is one micro-batch needs no second pass.

Dropout must fall the same way both times, so it is drawn from the micro-batch's own samples.

Legend: S sequences of a micro-batch, N sequences of the whole step, D width, F facts of a sequence.

Source: Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (2021).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.data.batch import Batch

Embed = Callable[[Batch], Tensor]
"""embeddings_SD of a micro-batch, float32."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(embeddings_ND, facts_NF) -> losses_N, summed to the step's loss; 0 for rows that have none of their own."""
Gather = Callable[[Tensor], Tensor]
"""The rows of all processes, this process's first row at the place that `Coupled.rank` knows."""


@dataclass
class Coupled:
    """The loss of a whole step for each of its micro-batches.

    Args:
        gather: rows of all processes on the CPU, in the order of their ranks.
        rank, world: this process among all.
    """

    gather: Gather
    rank: int = 0
    world: int = 1
    known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = field(
        default_factory=dict[tuple[int, ...], tuple[Tensor, Tensor]]
    )
    """For each micro-batch, by its samples: losses_S, and the step's gradient of each row, [S, D]."""

    def prepare(self, step: Sequence[Batch], facts: Callable[[Batch], Tensor], embed: Embed, loss: Loss) -> None:
        """Embed the step's rows without a graph and keep their gradients.

        Nothing where the step is one micro-batch, or where nothing is learned.
        """
        self.known.clear()
        if not torch.is_grad_enabled() or (self.world == 1 and len(step) == 1):
            return
        mine = []
        for batch in step:
            with torch.no_grad(), repeatable(batch):
                mine.append(embed(batch).float())
        embeddings_SD, facts_SF = torch.cat(mine), torch.cat([facts(batch) for batch in step])
        device = embeddings_SD.device
        counts = self.gather(torch.tensor([len(embeddings_SD)], dtype=torch.int64)).tolist()
        start = sum(counts[: self.rank])
        with torch.enable_grad():
            all_ND = self.gather(embeddings_SD).to(device).requires_grad_()
            losses_N = loss(all_ND, self.gather(facts_SF).to(device))
            (gradient_ND,) = torch.autograd.grad(losses_N.sum(), all_ND)
        for batch in step:
            rows = slice(start, start + len(batch.lengths))
            self.known[batch.samples] = losses_N.detach()[rows], gradient_ND[rows]
            start = rows.stop

    def loss(self, batch: Batch, facts_SF: Tensor, embed: Embed, loss: Loss) -> tuple[Tensor, Tensor]:
        """This micro-batch's part of the step's loss, with its gradient, and its embeddings_SD."""
        with repeatable(batch):
            embeddings_SD = embed(batch).float()
        if batch.samples not in self.known:
            return loss(embeddings_SD, facts_SF).sum(), embeddings_SD
        losses_S, gradient_SD = self.known[batch.samples]
        pulled = (embeddings_SD * gradient_SD).sum()
        return pulled + (losses_S.sum() - pulled).detach(), embeddings_SD


@contextmanager
def repeatable(batch: Batch) -> Generator[None]:
    """Random numbers that are a function of the step's seed and of the micro-batch's samples."""
    device = batch.ids_T.device
    words = f"{torch.initial_seed()}:{batch.samples}".encode()
    seed = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
