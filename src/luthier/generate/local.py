"""Text from a model in this process, for one caller."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager

from luthier.generate.batching import Batching
from luthier.generate.config import SamplingConfig
from luthier.generate.padded import Padded
from luthier.generate.request import Piece, Request, Ticket
from luthier.generate.sampler import Completion, ends_of
from luthier.model.causal import Model


class Local:
    """A Sampler on a loaded model, which may be in training between its calls.

    Nothing is kept from call to call: the weights may have moved.  The model's own generation settings are not used,
    except for the tokens that end an answer.

    Args:
        stop_ids: tokens that end an answer besides the model's and the tokenizer's own.
        batch: answers under way at once.
    """

    def __init__(self, model: Model, *, stop_ids: Collection[int] = (), batch: int = 8):
        self.model, self.batch = model, batch
        self.stop_ids = ends_of(model, stop_ids)

    def stream(self, prompt: Sequence[int], sampling: SamplingConfig) -> Iterator[str]:
        """Pieces of the answer as they come.  Leaving the loop early stops the model.

        Raises:
            DataError: the prompt is empty or fills the model's context.
        """
        pieces: list[Piece | Exception] = []
        with self._working([(Request(tuple(prompt), sampling), pieces)]) as work:
            while work.running or work.waiting:
                work.step()
                yield from (piece.text for piece in map(_checked, pieces) if piece.text)
                pieces.clear()

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig) -> list[Completion]:
        """One answer to each prompt, in order; none depends on which others are asked for with it.

        The n-th one is sampled with the seed plus n, so that equal prompts get different answers.

        Raises:
            DataError: a prompt is empty or fills the model's context.
        """
        asked: list[tuple[Request, list[Piece | Exception]]] = []
        for number, prompt in enumerate(prompts):
            own = sampling.model_copy(update={"seed": sampling.seed + number})
            asked.append((Request(tuple(prompt), own), []))
        with self._working(asked) as work:
            while work.running or work.waiting:
                work.step()
        answers = [[_checked(piece) for piece in pieces] for _, pieces in asked]
        return [Completion.of(pieces) for pieces in answers]

    @contextmanager
    def _working(self, asked: Sequence[tuple[Request, list[Piece | Exception]]]) -> Generator[Batching | Padded]:
        """The requests under way, on a model that is afterwards as it was: a training run may own it."""
        model, was_training = self.model, self.model.network.training
        kind = Batching if model.packed else Padded
        work = kind(model, stop_ids=self.stop_ids, slots=self.batch)
        try:
            for request, pieces in asked:
                work.add(Ticket(request, pieces.append))
            yield work
        finally:
            model.network.train(was_training)


def _checked(piece: Piece | Exception) -> Piece:
    if isinstance(piece, Exception):
        raise piece
    return piece
