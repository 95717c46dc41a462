"""Facts about a loaded model found out by running it on a handful of tokens, rather than believed.

Legend: T packed tokens, R rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.base.errors import ModelError
from luthier.model.attention import Packing, packed_forward

Finish = Callable[[Tensor], Tensor]
"""What a model does to the product of its head before calling it logits."""

# Three sequences: the first and the last two differ in length, so a leak or a wrong position shows.
_LENGTHS = (3, 2, 4)


def finish_of(network: PreTrainedModel) -> Finish:
    """The model's own treatment of its head's output: nothing, a scale, a soft cap, or a scale and then a cap.

    The settings name the constants; one run of the whole model says how they are used.

    Raises:
        ModelError: the logits are none of these, or the head is not applied to the decoder's last hidden state.
    """
    seen: dict[str, Tensor] = {}
    head: Any = network.get_output_embeddings()
    decoder: Any = network.get_decoder()
    hooks = [
        head.register_forward_hook(lambda _, inputs, output: seen.update(into=inputs[0], raw=output)),
        decoder.register_forward_hook(lambda _, inputs, output: seen.update(hidden=output[0])),
    ]
    with torch.no_grad():
        logits = network(input_ids=_ids(network, 3)[None], use_cache=False).logits
    for hook in hooks:
        hook.remove()
    if seen and seen["into"].shape == seen["hidden"].shape and _close(seen["into"], seen["hidden"]):
        for finish in _finishes(network.config.get_text_config()):
            if _close(finish(seen["raw"]), logits):
                return finish
    raise ModelError(
        f"the logits of {type(network).__name__} are not its head applied to its last hidden state",
        code="unknown_head",
        fix="This architecture cannot be trained yet",
    )


def runs_packed(network: PreTrainedModel) -> bool:
    """Whether packed sequences neither see each other nor get wrong positions."""
    total = sum(_LENGTHS)
    ids_T = _ids(network, total)
    decoder: Any = network.get_decoder()
    other_T = ids_T.roll(1)
    other_T[-_LENGTHS[-1] :] = ids_T[-_LENGTHS[-1] :]
    with torch.no_grad():
        together = packed_hidden(network, ids_T, _LENGTHS)[-_LENGTHS[-1] :]
        neighbours_changed = packed_hidden(network, other_T, _LENGTHS)[-_LENGTHS[-1] :]
        alone = decoder(input_ids=ids_T[None, -_LENGTHS[-1] :], use_cache=False)[0][0]
    return _close(together, neighbours_changed) and _close(together, alone)


def packed_hidden(network: PreTrainedModel, ids_T: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """hidden_TD of sequences laid end to end."""
    positions_T = torch.cat([torch.arange(length, device=ids_T.device) for length in lengths])
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    packing = Packing.of(lengths, tuple(offsets), ids_T.device)
    decoder: Any = network.get_decoder()
    with packed_forward():
        return decoder(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, packing=packing)[0][0]


def _ids(network: PreTrainedModel, n: int) -> Tensor:
    embedding: Any = network.get_input_embeddings()
    vocabulary = embedding.weight.shape[0]
    return (torch.arange(n, device=network.device) * 7 + 3) % vocabulary


def _close(left: Tensor, right: Tensor) -> bool:
    """Equal within the rounding of the coarser type."""
    tolerance = 1e-4 if left.dtype == right.dtype == torch.float32 else 5e-2
    left, right = left.float(), right.float()
    return bool((left - right).norm() <= tolerance * right.norm() + 1e-6)


def _finishes(config: Any) -> Iterator[Finish]:
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        constant = getattr(config, name, None)
        if constant:
            scales += [constant, 1.0 / constant]
    cap = getattr(config, "final_logit_softcapping", None)
    for scale in scales:
        yield partial(_finish, scale=scale, cap=cap) if cap or scale != 1.0 else _as_is


def _as_is(logits: Tensor) -> Tensor:
    return logits


def _finish(logits: Tensor, *, scale: float, cap: float | None) -> Tensor:
    scaled = logits * scale
    return torch.tanh(scaled / cap) * cap if cap else scaled
