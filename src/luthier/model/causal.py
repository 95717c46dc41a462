"""The Model that every other room works with: hidden states and log-probabilities of packed batches.

Legend: T packed tokens, S sequences, L tokens of the longest sequence, R rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.base.errors import ModelError
from luthier.model import attention, probe
from luthier.model.config import ModelConfig
from luthier.model.decoder import Decoder, Unsuitable
from luthier.model.layer import Keep
from luthier.model.logprobs import chunk_rows, score_by_autograd, score_by_hand, token_logprobs
from luthier.model.pointwise import Plain, Pointwise

if TYPE_CHECKING:
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


class Model:
    """A causal language model with its tokenizer: hidden states and log-probabilities of packed batches.

    Attributes:
        network: the transformers model, or the PEFT model around it once a method has wrapped it.
        base: the transformers model itself; a method changes it in place.
        dtype: the arithmetic's type; weights may be held wider.
        max_length: longest sequence the model can hold, in tokens.
        config: what the user asked for.
        packed: whether sequences run end to end without padding.
        sharded: the decoder whose weights are split over several processes, if they are.
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
        packed: bool,
        note: str | None,
    ):
        self.network: nn.Module = network
        self.base = network
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self.max_length = max_length
        self.config = config
        self.packed, self.note = packed, note
        self.sharded: Sharded | None = None
        self.keep: Keep = "most"
        self._checkpointing = False
        self._trained: dict[str, nn.Parameter] | None = None
        self._decoder: Decoder | None = None
        self._pointwise: Pointwise = Plain()
        self.finish = probe.finish_of(network)
        self.vocabulary = int(self.head.weight.shape[0])

    @property
    def head(self) -> Any:
        """The module that makes vocabulary scores of hidden states; adapters may have wrapped it."""
        return self.base.get_output_embeddings()

    @property
    def adapted(self) -> bool:
        """Whether adapters are on."""
        return self.network is not self.base

    def hidden(self, batch: Batch) -> Tensor:
        """hidden_TD after the final norm, in the batch's order.  An empty batch gives [0, D] with a graph."""
        if not batch.lengths:
            # One token goes through and is cut away, so every rank of a step makes the same collectives.
            token_T = torch.zeros(1, dtype=torch.int64, device=self.device)
            return self._hidden(token_T, token_T, (1,), (0, 1))[:0]
        return self._hidden(batch.ids_T, batch.positions_T, batch.lengths, batch.offsets)

    def logprobs(self, batch: Batch, hidden_TD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logprobs_T (float32) of the targets and correct_T (bool: the target is the argmax) at the trained positions.

        Both are 0 elsewhere.  See `model.logprobs`.
        """
        hidden_TD = self.hidden(batch) if hidden_TD is None else hidden_TD
        return token_logprobs(self._score, hidden_TD, batch.targets_T, batch.trained_R)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """hidden_RD -> logits_RV: the head and the model's own scale or cap."""
        with self.arithmetic():
            return self.finish(self.head(hidden_RD))

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that move, by name, in the network's order.  `train_mode` settles which they are."""
        if self._trained is not None:
            return self._trained
        return {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}

    def anchor(self) -> Tensor:
        """A scalar 0 with a graph through every trained weight.  []"""
        total = torch.zeros((), device=self.device)
        for weight in self.trained().values():
            total = total + weight.flatten()[:0].sum()
        return total

    @property
    def runs_by_hand(self) -> bool:
        """Whether `model.layer` computes the layers."""
        return self._decoder is not None

    def by_hand(self, pointwise: Pointwise) -> str | None:
        """Run the decoder through `model.layer` from now on; or the reason why this model cannot.

        To be called when the method has been applied: the layers find their adapters once.
        """
        if self.sharded is not None:
            return "its weights are split over several processes"
        if not self.packed:
            return "its sequences are padded"
        try:
            self._decoder = Decoder(self.base.get_decoder(), self.dtype, pointwise)
        except Unsuitable as reason:
            return str(reason)
        self._pointwise = pointwise
        return None

    def split(self, sharded: Sharded, device: torch.device) -> None:
        """Run the decoder through `sharded` on `device` from now on; its weights are other objects than before."""
        self.sharded, self.device, self._trained = sharded, device, None

    def train_mode(self, keep: Keep = "most") -> None:
        """Dropout on.  keep: what each layer keeps for its backward pass; what it does not is computed again.

        Where transformers runs the layers, "some" keeps as little as "input".

        Raises:
            ModelError: the model cannot compute its layers again.
        """
        recompute = keep != "most" and self._decoder is None
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
        # Looked up once: a large model has thousands of modules, and each step asks.
        self._trained = None
        self._trained = self.trained()
        self.network.train()

    def eval_mode(self) -> None:
        """Dropout off."""
        self.network.eval()

    def arithmetic(self) -> torch.autocast:
        """The context in which the network is to be run."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _hidden(self, ids_T: Tensor, positions_T: Tensor, lengths: tuple[int, ...], offsets: tuple[int, ...]) -> Tensor:
        decoder: Any = self.base.get_decoder() if self.sharded is None else self.sharded
        if self.packed:
            packing = attention.Packing.of(lengths, offsets, self.device)
            if self._decoder is not None:
                return self._decoder.hidden(ids_T, positions_T, packing, self.keep)
            with self.arithmetic():
                return decoder(**attention.packed_inputs(ids_T, positions_T, packing))[0][0]
        within_SL = torch.arange(max(lengths), device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        ids_SL = torch.zeros_like(within_SL, dtype=torch.int64).masked_scatter(within_SL, ids_T)
        positions_SL = torch.zeros_like(ids_SL).masked_scatter(within_SL, positions_T)
        with self.arithmetic():
            hidden_SLD = decoder(
                input_ids=ids_SL, attention_mask=within_SL.long(), position_ids=positions_SL, use_cache=False
            )[0]
        return hidden_SLD[within_SL]

    def _score(self, hidden_RD: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor]:
        rows = chunk_rows(self.vocabulary, self.device)
        head: Any = self.head
        kind: type = type(head)
        if kind is nn.Linear and head.bias is None and self.finish is probe.as_is:
            return score_by_hand(
                head.weight,
                hidden_RD.to(self.dtype),
                targets_R,
                rows_at_once=rows,
                keep_logits=self.keep == "most",
                pointwise=self._pointwise,
            )
        return score_by_autograd(self.logits, hidden_RD, targets_R, rows_at_once=rows)
