"""The Model that every other room works with: hidden states and log-probabilities of packed batches.

Legend: T packed tokens, S sequences, L tokens of the longest sequence, R rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.base.errors import ModelError
from luthier.model import attention, heads, probe
from luthier.model.calling import Calling, run_packed, run_padded, run_pairs
from luthier.model.config import ModelConfig
from luthier.model.decoder import Decoder, Unsuitable
from luthier.model.heads import CAUSAL, Head
from luthier.model.layer import Keep
from luthier.model.logprobs import chunk_rows, score_by_autograd, score_by_hand, token_logprobs
from luthier.model.pointwise import Plain, Pointwise

if TYPE_CHECKING:
    from luthier.model.noise import Noise
    from luthier.model.prompts import Before
    from luthier.model.sharding import Sharded

# Renamed in transformers 5.2x; the old name warns there.
_NEW_NAME = "activation_checkpointing_enable" in vars(PreTrainedModel)
_CHECKPOINTING_ON: Callable[..., None] = (
    PreTrainedModel.activation_checkpointing_enable if _NEW_NAME else PreTrainedModel.gradient_checkpointing_enable
)
_CHECKPOINTING_OFF: Callable[..., None] = (
    PreTrainedModel.activation_checkpointing_disable if _NEW_NAME else PreTrainedModel.gradient_checkpointing_disable
)


class Batch(Protocol):
    """What is read of `data.batch.Batch`, which says what the fields mean."""

    @property
    def ids_T(self) -> Tensor: ...
    @property
    def positions_T(self) -> Tensor: ...
    @property
    def targets_T(self) -> Tensor: ...
    @property
    def trained_R(self) -> Tensor: ...
    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def offsets(self) -> tuple[int, ...]: ...
    @property
    def segments_T(self) -> Tensor | None: ...
    @property
    def groups(self) -> tuple[int, ...]: ...
    @property
    def samples(self) -> tuple[int, ...]: ...


class Model:
    """A language model with its tokenizer: hidden states and scores of packed batches.

    Attributes:
        network: the transformers model, or the PEFT model around it once a method has wrapped it.
        base: the transformers model itself; a method changes it in place.
        dtype: the arithmetic's type; weights may be held wider.
        max_length: longest sequence the model can hold, in tokens.
        config: what the user asked for.
        kind: what stands on the backbone: what the model scores.
        others: models of other heads, by the names of their tasks, whose backbone is this one's; see `model.shared`.
        calling: how the backbone is called.
        sharded: the decoder whose weights are split over several processes, if they are.
        before: what is put before every sequence, if anything is.
        noise: what is added to the embeddings while training, if anything is.
        note: one sentence for the user about how the model is run, if there is something to say.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        config: ModelConfig,
        calling: Calling,
        note: str | None,
        kind: Head = CAUSAL,
    ):
        self.network: nn.Module = network
        self.base = network
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self.max_length = max_length
        self.config = config
        self.calling, self.note = calling, note
        self.others: dict[str, Model] = {}
        self.sharded: Sharded | None = None
        self.before: Before | None = None
        self.noise: Noise | None = None
        self.keep: Keep = "most"
        self._checkpointing = False
        self._trained: dict[str, nn.Parameter] | None = None
        self._decoder: Decoder | None = None
        self._shared: tuple[Batch, Tensor] | None = None
        self._pointwise: Pointwise = Plain()
        # Heads look for padding in the tokens; this is none.
        self._any_token = int(network.config.get_text_config().pad_token_id == 0)
        if network.config.is_encoder_decoder and kind.kind == "sequence":
            self._any_token = int(network.config.eos_token_id)  # the one that BART's head looks for
        self.kind = kind
        self.finish = probe.finish_of(network) if kind.kind == "causal" else probe.as_is
        rows: Any = self.head if kind.kind == "causal" else network.get_input_embeddings()
        self.vocabulary = int(rows.weight.shape[0])

    @property
    def head(self) -> Any:
        """The module that makes vocabulary scores of hidden states; adapters may have wrapped it."""
        return self.base.get_output_embeddings()

    @property
    def tied(self) -> bool:
        """Whether the matrix that tokens are looked up in is the head too."""
        return self.kind.kind == "causal" and self.head.weight is self.base.get_input_embeddings().weight

    @property
    def packed(self) -> bool:
        """Whether sequences run end to end without padding."""
        return self.calling.packed and self.before is None

    @property
    def adapted(self) -> bool:
        """Whether adapters are on."""
        return not isinstance(self.network, PreTrainedModel)

    def under(self, task: str) -> Model:
        """This model as it is now, with the head of a task; itself where the task has no head of its own."""
        other = self.others.get(task)
        if other is None:
            return self
        view = copy(self)
        view.base, view.kind, view.calling = other.base, other.kind, other.calling
        view.finish, view.vocabulary = other.finish, other.vocabulary
        return view

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter by name, in the network's order; behind them those of other heads, `heads.<task>.<name>`."""
        found = dict(self.network.named_parameters())
        known = {id(weight) for weight in found.values()}
        for task, other in self.others.items():
            for name, weight in other.base.named_parameters():
                if id(weight) not in known:
                    known.add(id(weight))
                    found[f"heads.{task}.{name}"] = weight
        return found

    def hidden(self, batch: Batch) -> Tensor:
        """hidden_TD after the final norm, in the batch's order.  An empty batch gives [0, D] with a graph."""
        if not batch.lengths:
            # One token goes through and is cut away, so every rank of a step makes the same collectives.
            token_T = torch.zeros(1, dtype=torch.int64, device=self.device)
            if self.kind.kind == "seq2seq":
                return self._hidden(token_T.expand(2), token_T.expand(2), (1, 1), (0, 1, 2), None, (2,))[:0]
            return self._hidden(token_T, token_T, (1,), (0, 1), None, (1,))[:0]
        if self._shared is not None and self._shared[0] is batch:
            return self._shared[1]
        if self.noise is not None and self.network.training:
            self.noise.draw(batch)
        return self._hidden(
            batch.ids_T, batch.positions_T, batch.lengths, batch.offsets, batch.segments_T, batch.groups
        )

    @contextmanager
    def sharing_hidden(self, batch: Batch) -> Generator[Tensor]:
        """hidden_TD of a batch, which `hidden` gives again as long as the block lasts instead of computing it anew."""
        hidden_TD = self.hidden(batch)
        self._shared = (batch, hidden_TD)
        try:
            yield hidden_TD
        finally:
            self._shared = None

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """logprobs_T (float32) of the targets and correct_T (bool: the target is the argmax) at the trained positions.

        Both are 0 elsewhere.  See `model.logprobs`.
        """
        return token_logprobs(self._score, self.hidden(batch), batch.targets_T, batch.trained_R)

    def scores(self, batch: Batch, hidden_TD: Tensor | None = None) -> Tensor:
        """scores_SC of the sequences, or scores_RC of the trained positions, by the model's head; float32."""
        hidden_TD = self.hidden(batch) if hidden_TD is None else hidden_TD
        if self.kind.kind == "sequence":
            hidden_TD = heads.pooled(hidden_TD, batch.lengths, batch.offsets, self.calling.pooling)
        else:
            hidden_TD = hidden_TD[batch.trained_R]
        return self.logits(hidden_TD).float()

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """hidden_RD -> logits_RV: the head and the model's own scale or cap."""
        if self.kind.kind != "causal":
            return self._through_head(hidden_RD)
        with self.arithmetic():
            return self.finish(self.head(hidden_RD))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that move, by name, in the network's order.  `train_mode` settles which they are."""
        if self._trained is not None:
            return self._trained
        return {name: weight for name, weight in self.weights().items() if weight.requires_grad}

    def anchor(self) -> Tensor:
        """A scalar 0 from which a backward pass can begin where no sample leads to a weight.  []"""
        return torch.zeros((), device=self.device, requires_grad=torch.is_grad_enabled())

    def open_gradient(self) -> None:
        """Give a vocabulary that is trained a gradient to add to, before a backward pass makes one to be added."""
        if self.kind.kind != "causal" or self.sharded is not None:
            return
        weight: Tensor = self.head.weight
        # A head with more tokens than its base has is put together anew for every use.
        if weight.is_leaf and weight.requires_grad and weight.grad is None:
            weight.grad = torch.zeros_like(weight)

    def settle(self) -> None:
        """Look up anew, from now on, which weights move."""
        self._trained = None

    @property
    def runs_by_hand(self) -> bool:
        """Whether `model.layer` computes the layers."""
        return self._decoder is not None

    @property
    def scores_by_hand(self) -> bool:
        """Whether `model.logprobs` computes the scores of the vocabulary, rather than autograd."""
        if self.kind.kind != "causal" or self.finish is not probe.as_is:
            return False
        head: Any = self.head
        kind: type = type(head)
        return kind is nn.Linear and head.bias is None

    def by_hand(self, pointwise: Pointwise) -> str | None:
        """Run the decoder through `model.layer` from now on; or the reason why this model cannot.

        To be called when the method has been applied: the layers find their adapters once.
        """
        if self.sharded is not None:
            return "its weights are split over several processes"
        if not self.packed:
            return "its sequences are padded"
        try:
            self._decoder = Decoder(heads.backbone(self.base, self.kind), self.dtype, pointwise)
        except Unsuitable as reason:
            return str(reason)
        self._pointwise = pointwise
        return None

    def seats(self) -> list[Tensor]:
        """What `model.layer` holds beside the weights: the places where adapters ride."""
        layers = () if self._decoder is None else self._decoder.layers
        return [rider.seat for layer in layers for rider in layer.riders]

    def split(self, sharded: Sharded, device: torch.device) -> None:
        """Run the decoder through `sharded` on `device` from now on; its weights are other objects than before."""
        self.sharded, self.device, self._trained = sharded, device, None

    def train_mode(self, keep: Keep = "most") -> None:
        """Dropout on.  keep: what each layer keeps for its backward pass; what it does not is computed again.

        Where transformers runs the layers, "all" keeps as much as "most", and "some" as little as "input".

        Raises:
            ModelError: the model cannot compute its layers again.
        """
        recompute = keep not in ("all", "most") and self._decoder is None
        if recompute and not self.base.supports_gradient_checkpointing:
            raise ModelError(
                f"{type(self.base).__name__} cannot compute its layers again",
                where="--gradient_checkpointing",
                fix="Set it to false",
            )
        if recompute and not self._checkpointing:
            _CHECKPOINTING_ON(self.base, {"use_reentrant": False})
        elif self._checkpointing and not recompute:
            _CHECKPOINTING_OFF(self.base)
        self._checkpointing, self.keep = recompute, keep
        # Looked up once: a large model has thousands of modules, and each step asks.  Weights that rest for some steps
        # are among them.
        self._trained = self.trained()
        self._switch(True)

    def eval_mode(self) -> None:
        """Dropout off."""
        self._switch(False)

    def _switch(self, training: bool) -> None:
        for other in self.others.values():
            other.base.train(training)
        self.network.train(training)

    def arithmetic(self) -> torch.autocast:
        """The context in which the network is to be run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _through_head(self, hidden_RD: Tensor) -> Tensor:
        if not hidden_RD.shape[0]:
            return self._through_head(hidden_RD.new_zeros(1, hidden_RD.shape[1]))[:0] + hidden_RD.sum()
        ids_R = torch.full(hidden_RD.shape[:1], self._any_token, dtype=torch.int64, device=hidden_RD.device)
        with self.arithmetic():
            if self.kind.kind == "sequence":
                return heads.through(self.base, self.kind, hidden_RD[:, None], ids_R[:, None])
            return heads.through(self.base, self.kind, hidden_RD[None], ids_R[None])[0]

    def _hidden(
        self,
        ids_T: Tensor,
        positions_T: Tensor,
        lengths: tuple[int, ...],
        offsets: tuple[int, ...],
        segments_T: Tensor | None,
        groups: tuple[int, ...],
    ) -> Tensor:
        if self.kind.kind == "seq2seq":
            with self.arithmetic():
                return run_pairs(self.base, ids_T, lengths, groups)
        below = heads.backbone(self.base, self.kind) if self.sharded is None else self.sharded
        if not self.packed:
            with self.arithmetic():
                if self.before is not None:
                    return self.before.hidden(below, ids_T, lengths)
                return run_padded(below, self.calling, ids_T, positions_T, lengths, segments_T)
        packing = attention.Packing.of(lengths, offsets, self.device)
        if self._decoder is not None:
            return self._decoder.hidden(ids_T, positions_T, packing, self.keep)
        with self.arithmetic():
            return run_packed(below, self.calling, ids_T, positions_T, packing, segments_T)

    def _score(self, hidden_RD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        roomy = self.keep in ("all", "most")
        rows = chunk_rows(self.vocabulary, self.device, roomy=roomy)
        if self.scores_by_hand:
            return score_by_hand(
                self.head.weight,
                hidden_RD.to(self.dtype),
                targets_R,
                rows_at_once=rows,
                keep_logits=roomy,
                pointwise=self._pointwise,
            )
        return score_by_autograd(self.logits, hidden_RD, targets_R, rows_at_once=rows)
