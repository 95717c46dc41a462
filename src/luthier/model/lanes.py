"""Keys and values of many running sequences, a lane each, and attention over them in one step.

A step runs some tokens of several sequences as one packed row: one token of each sequence that is being continued,
then pieces of prompts.  Everything but attention sees only a row of tokens; attention writes their keys and values
into the lanes and looks there for what came before.

Legend: T tokens of a step, N lanes, n lanes that are continued, C capacity of a lane in tokens, L tokens looked at,
H query heads, G key/value heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens of one sequence in one step: `length` tokens behind the `start` that its lane has already."""

    lane: int
    start: int
    length: int


class Lanes:
    """The memory of a batch of sequences.  Layers get theirs when they first run."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self.rows, self.capacity = 0, 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    def resize(self, rows: int, capacity: int) -> None:
        """Make it `rows` lanes of `capacity` tokens; what fits in the new shape is kept."""
        self.rows, self.capacity = rows, capacity
        for held in (self._keys, self._values):
            for layer, old_NGCE in held.items():
                lanes, heads, tokens, width = old_NGCE.shape
                held[layer] = new_NGCE = old_NGCE.new_zeros(rows, heads, capacity, width)
                lanes, tokens = min(lanes, rows), min(tokens, capacity)
                new_NGCE[:lanes, :, :tokens] = old_NGCE[:lanes, :, :tokens]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give lane `target` the first tokens of lane `source`."""
        for held in (self._keys, self._values):
            for all_NGCE in held.values():
                all_NGCE[target, :, :tokens] = all_NGCE[source, :, :tokens]

    def layer(self, number: int, like_GE: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """keys_NGCE and values_NGCE of a layer; `like_GE` is heads, width of keys, width of values."""
        if number not in self._keys:
            heads, keys, values = like_GE
            shape = self.rows, heads, self.capacity
            # Zeros, because what no token has written is masked, and 0 times a leftover NaN is NaN.
            self._keys[number] = torch.zeros(*shape, keys, dtype=self.dtype, device=self.device)
            self._values[number] = torch.zeros(*shape, values, dtype=self.dtype, device=self.device)
        return self._keys[number], self._values[number]


class Step:
    """Attention of one step.

    Args:
        continued: sequences with one token each, in the order of their lanes.
        prompts: pieces of prompts, which come behind those in the row.
    """

    def __init__(self, lanes: Lanes, continued: Sequence[Part], prompts: Sequence[Part]):
        self._lanes, self._prompts = lanes, prompts
        device = lanes.device
        places = [(part.lane, part.start + n) for part in (*continued, *prompts) for n in range(part.length)]
        lane_and_position = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True)
        self._lane_T, self.positions_T = lane_and_position.unbind(1)
        self._count = len(continued)
        self._longest = max((part.start + 1 for part in continued), default=0)
        every = (*continued, *prompts)
        self._alone = (every[0].lane, every[0].start, every[0].start + every[0].length) if len(every) == 1 else None
        own = [part.lane for part in continued]
        self._chosen: slice | Tensor = slice(0, len(own))
        if len(own) == 1:
            self._chosen = slice(own[0], own[0] + 1)
        elif own != list(range(len(own))):
            self._chosen = torch.tensor(own, device=device)
        self._masks: dict[int | None, Tensor] = {}

    def attend(
        self, layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """out_THE.  window: tokens that a token sees, itself included."""
        heads = k_TGE.shape[1], k_TGE.shape[2], v_TGE.shape[2]
        keys_NGCE, values_NGCE = self._lanes.layer(layer, heads)
        for held_NGCE, new_TGE in ((keys_NGCE, k_TGE), (values_NGCE, v_TGE)):
            if self._alone is None:
                held_NGCE[self._lane_T, :, self.positions_T] = new_TGE.to(held_NGCE.dtype)
            else:  # a stretch of one lane, which needs no indices
                lane, start, end = self._alone
                held_NGCE[lane, :, start:end] = new_TGE.transpose(0, 1)
        q_THE = q_THE.to(keys_NGCE.dtype)
        outputs: list[Tensor] = []
        if self._count:
            # The query heads of a key head are queries that see the same tokens.
            q_nGqE = q_THE[: self._count].unflatten(1, (heads[0], -1))
            out_nGqE = scaled_dot_product_attention(
                q_nGqE,
                keys_NGCE[self._chosen, :, : self._longest],
                values_NGCE[self._chosen, :, : self._longest],
                attn_mask=self._mask(window),
                scale=scaling,
            )
            outputs.append(out_nGqE.flatten(1, 2))
        at = self._count
        for part in self._prompts:
            seen = part.start + part.length
            out_1HLE = scaled_dot_product_attention(
                q_THE[at : at + part.length].transpose(0, 1)[None],
                keys_NGCE[part.lane : part.lane + 1, :, :seen],
                values_NGCE[part.lane : part.lane + 1, :, :seen],
                attn_mask=self._prompt_mask(part, window),
                is_causal=part.start == 0 and not _cuts(window, seen),
                scale=scaling,
                enable_gqa=q_THE.shape[1] != heads[0],
            )
            outputs.append(out_1HLE[0].transpose(0, 1))
            at += part.length
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _mask(self, window: int | None) -> Tensor | None:
        """bool [n, 1, 1, L]: what each continued sequence sees; None where that is everything."""
        if self._count == 1 and not _cuts(window, self._longest):
            return None
        if window not in self._masks:
            position_n1 = self.positions_T[: self._count, None]
            token_L = torch.arange(self._longest, device=self._lanes.device)
            mask_nL = token_L <= position_n1
            if window is not None:
                mask_nL &= token_L > position_n1 - window
            self._masks[window] = mask_nL[:, None, None]
        return self._masks[window]

    def _prompt_mask(self, part: Part, window: int | None) -> Tensor | None:
        """bool [length, seen], or None where plain causal attention is meant."""
        seen = part.start + part.length
        if part.start == 0 and not _cuts(window, seen):
            return None
        position_L1 = torch.arange(part.start, seen, device=self._lanes.device)[:, None]
        token_L = torch.arange(seen, device=self._lanes.device)
        mask_LL = token_L <= position_L1
        return mask_LL if window is None else mask_LL & (token_L > position_L1 - window)


def _cuts(window: int | None, tokens: int) -> bool:
    return window is not None and window < tokens


def token_bytes(layers: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that a token takes in a lane."""
    return 2 * layers * heads * width * dtype.itemsize
