"""How a backbone is called: which inputs it takes, where its positions begin, whether its sequences can be packed.

Legend: T packed tokens, S sequences, L tokens of the longest sequence, D width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.model import attention
from luthier.model.heads import Head, Pooling, backbone


@dataclass(frozen=True, slots=True)
class Calling:
    """One way to call a backbone."""

    packed: bool = False
    """Whether sequences lie end to end, without padding."""
    first_position: int = 0
    """Number of a sequence's first position: RoBERTa counts from behind its padding token's number."""
    positions: bool = True
    segments: bool = False
    cache: bool = True
    """Whether it takes positions, segments of pairs, and whether to keep keys and values."""
    pooling: Pooling = "last"
    """What of a sequence a head for sequences is given."""

    def inputs(self, positions_T: Tensor, segments_T: Tensor | None) -> dict[str, Tensor]:
        """Everything but the tokens that has one number for each token."""
        found: dict[str, Tensor] = {}
        if self.positions:
            found["position_ids"] = positions_T + self.first_position if self.first_position else positions_T
        if self.segments and segments_T is not None:
            found["token_type_ids"] = segments_T
        return found


def calling_of(network: PreTrainedModel, head: Head) -> Calling:
    """What can be told from names: which inputs are taken."""
    takes = inspect.signature(backbone(network, head).forward).parameters
    kinds = getattr(network.config.get_text_config(), "type_vocab_size", 0) or 0
    return Calling(
        positions="position_ids" in takes, segments="token_type_ids" in takes and kinds > 1, cache="use_cache" in takes
    )


def run_packed(
    below: nn.Module,
    calling: Calling,
    ids_T: Tensor,
    positions_T: Tensor,
    packing: attention.Packing,
    segments_T: Tensor | None = None,
) -> Tensor:
    """hidden_TD of sequences laid end to end.

    Nobody reads the mask.  transformers takes one of four axes for finished; given none it would look for sequences in
    the positions, and wait for the device to find them.
    """
    inputs: dict[str, Any] = {name: value[None] for name, value in calling.inputs(positions_T, segments_T).items()}
    if calling.cache:
        inputs["use_cache"] = False
    mask = torch.empty(1, 1, 0, 0, device=ids_T.device)
    return below(input_ids=ids_T[None], attention_mask=mask, packing=packing, **inputs)[0][0]


def run_padded(
    below: nn.Module,
    calling: Calling,
    ids_T: Tensor,
    positions_T: Tensor,
    lengths: tuple[int, ...],
    segments_T: Tensor | None = None,
) -> Tensor:
    """hidden_TD of sequences that are padded for the backbone, and taken apart again."""
    within_SL = within(lengths, ids_T.device)
    inputs: dict[str, Any] = {
        name: padded(value, within_SL) for name, value in calling.inputs(positions_T, segments_T).items()
    }
    if calling.cache:
        inputs["use_cache"] = False
    hidden_SLD = below(input_ids=padded(ids_T, within_SL), attention_mask=within_SL.long(), **inputs)[0]
    return unpadded(hidden_SLD, lengths)


def within(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """bool [S, L]: where a padded row holds a token."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def padded(values_T: Tensor, within_SL: Tensor) -> Tensor:
    """values_SL, 0 where there is no token."""
    return torch.zeros_like(within_SL, dtype=values_T.dtype).masked_scatter(within_SL, values_T)


def unpadded(hidden_SLD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """hidden_TD of the tokens.  Their places are counted here, so nobody waits for the device to count them."""
    longest = hidden_SLD.shape[1]
    places = [row * longest + place for row, length in enumerate(lengths) for place in range(length)]
    return hidden_SLD.flatten(0, 1)[torch.tensor(places, dtype=torch.int64, device=hidden_SLD.device)]


def run_pairs(network: PreTrainedModel, ids_T: Tensor, lengths: tuple[int, ...], groups: tuple[int, ...]) -> Tensor:
    """hidden_TD of groups of two sequences: the encoder's over each first, the decoder's over each second.

    The second sequence begins with the token that the decoder starts with.
    """
    assert set(groups) == {2}, "a source and a target each"
    network_any: Any = network
    own = ids_T.split(lengths)
    sources_SL, targets_SL = within(lengths[::2], ids_T.device), within(lengths[1::2], ids_T.device)
    encoded_SLD = network_any.get_encoder()(
        input_ids=padded(torch.cat(own[::2]), sources_SL), attention_mask=sources_SL.long()
    )[0]
    decoded_SLD = network_any.get_decoder()(
        input_ids=padded(torch.cat(own[1::2]), targets_SL),
        attention_mask=targets_SL.long(),
        encoder_hidden_states=encoded_SLD,
        encoder_attention_mask=sources_SL.long(),
        use_cache=False,
    )[0]
    firsts = unpadded(encoded_SLD, lengths[::2]).split(lengths[::2])
    seconds = unpadded(decoded_SLD, lengths[1::2]).split(lengths[1::2])
    return torch.cat([part_TD for pair in zip(firsts, seconds, strict=True) for part_TD in pair])
