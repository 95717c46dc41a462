"""Facts about a loaded model found out by running it on a handful of tokens, rather than believed.

Legend: T packed tokens, R rows, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.base.errors import ModelError
from luthier.model.attention import Packing
from luthier.model.calling import Calling, calling_of, run_packed, run_padded
from luthier.model.heads import Head, Pooling, backbone, pooled, through

Finish = Callable[[Tensor], Tensor]
"""What a model does to the product of its head before calling it logits."""

# Sequences of different lengths, so that a leak or a wrong position shows.
_LENGTHS = (3, 2, 4)


def finish_of(network: PreTrainedModel) -> Finish:
    """The model's own treatment of its head's output: nothing, a scale, a soft cap, or a scale and then a cap.

    The settings name the constants; one run of the whole model says how they are used.

    Raises:
        ModelError: the logits are none of these, or the head is not applied to the decoder's last hidden state.
    """
    if network.device.type == "meta":  # it has no numbers to run with; what they would take counts, not what they are
        return list(_finishes(network.config.get_text_config()))[-1]
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
        finishes = _finishes(network.config.get_text_config())
        best = min(finishes, key=lambda finish: _distance(finish(seen["raw"]), logits))
        if _close(best(seen["raw"]), logits):
            return best
    raise ModelError(
        f"the logits of {type(network).__name__} are not its head applied to its last hidden state",
        code="unknown_head",
        fix="This architecture cannot be trained yet",
    )


def called(network: PreTrainedModel, head: Head) -> Calling:
    """How a backbone is called: where its positions begin, and what its head is given of a sequence.

    Raises:
        ModelError: its hidden states with positions are not those without, or its head takes something else.
    """
    calling = calling_of(network, head)
    if head.kind == "causal":
        return calling
    if calling.positions and head.kind != "seq2seq":
        calling = replace(calling, first_position=_first_position(network, head, calling))
    return replace(calling, pooling=_pooling(network, head, calling)) if head.kind == "sequence" else calling


def _first_position(network: PreTrainedModel, head: Head, calling: Calling) -> int:
    ids_T, below = _ids(network, 3), backbone(network, head)
    pad = network.config.get_text_config().pad_token_id or 0
    with torch.no_grad():
        alone = below(input_ids=ids_T[None])[0][0]
        for first in (0, pad + 1):
            at = replace(calling, first_position=first)
            if _close(run_padded(below, at, ids_T, torch.arange(3, device=ids_T.device), (3,)), alone):
                return first
    raise ModelError(
        f"the positions of {type(network).__name__} begin at none of 0 and {pad + 1}",
        code="unknown_positions",
        fix="This architecture cannot be trained yet",
    )


def _pooling(network: PreTrainedModel, head: Head, calling: Calling) -> Pooling:
    """What of a sequence the head takes: found by comparing with the network's own scores."""
    ids_T = _ids(network, 3)
    if network.config.is_encoder_decoder:  # BART's head takes the token that ends a text
        ids_T[-1] = network.config.eos_token_id
    with torch.no_grad():
        scores = network(input_ids=ids_T[None]).logits
        try:
            hidden_TD = run_padded(backbone(network, head), calling, ids_T, torch.arange(3, device=ids_T.device), (3,))
        except ValueError as error:  # T5's decoder, unlike BART's, is not given the text by itself
            raise ModelError(
                f"the decoder of {type(network).__name__} does not read the text by itself",
                code="unknown_head",
                fix="Take an encoder, a decoder or a BART, or let it write the class by --task_type seq2seq",
            ) from error
        poolings: tuple[Pooling, ...] = ("first", "last", "mean")
        for pooling in poolings:
            row_SD = pooled(hidden_TD, (3,), (0, 3), pooling)
            if _close(through(network, head, row_SD[:, None], ids_T[None, -1:]), scores):
                return pooling
    raise ModelError(
        f"the head of {type(network).__name__} takes neither a sequence's first token nor its last nor their mean",
        code="unknown_head",
        fix="This architecture cannot be trained to classify yet",
    )


def runs_packed(network: PreTrainedModel, head: Head, calling: Calling) -> bool:
    """Whether packed sequences neither see each other nor get wrong positions, and every layer tells its window."""
    ids_T = _ids(network, sum(_LENGTHS))
    last = _LENGTHS[-1]
    others_T = torch.cat([ids_T[1:-last], ids_T[:1], ids_T[-last:]])
    below = backbone(network, head)
    with torch.no_grad():
        together, windows = _packed(below, calling, ids_T)
        neighbours_changed, _ = _packed(below, calling, others_T)
        alone = below(input_ids=ids_T[None, -last:], **({"use_cache": False} if calling.cache else {}))[0][0]
    # The sequences are shorter than any window, so that windows arrive has to be counted instead.
    return (
        windows == _windows(network.config.get_text_config())
        and _close(together[-last:], neighbours_changed[-last:])
        and _close(together[-last:], alone)
    )


def _packed(below: nn.Module, calling: Calling, ids_T: Tensor) -> tuple[Tensor, list[int | None]]:
    """hidden_TD of the probe's sequences laid end to end, and the window of each layer."""
    positions_T = torch.cat([torch.arange(length, device=ids_T.device) for length in _LENGTHS])
    windows: list[int | None] = []
    offsets = tuple(sum(_LENGTHS[:n]) for n in range(len(_LENGTHS) + 1))
    packing = replace(Packing.of(_LENGTHS, offsets, ids_T.device), windows=windows)
    return run_packed(below, calling, ids_T, positions_T, packing), windows


def _windows(config: Any) -> list[int | None]:
    """The sliding window that each layer should have by the settings."""
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "local_attention", None):
        window += 1  # ModernBERT's settings do not count the token itself
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _ids(network: PreTrainedModel, n: int) -> Tensor:
    embedding: Any = network.get_input_embeddings()
    vocabulary = embedding.weight.shape[0]
    return (torch.arange(n, device=network.device) * 7 + 3) % vocabulary


def _close(left: Tensor, right: Tensor) -> bool:
    """Equal within the rounding of the coarser type."""
    tolerance = 1e-4 if left.dtype == right.dtype == torch.float32 else 5e-2
    return _distance(left, right) <= tolerance


def _distance(left: Tensor, right: Tensor) -> float:
    """Norm of the difference relative to the norm of `right`."""
    left, right = left.float(), right.float()
    return float((left - right).norm() / right.norm().clamp(min=1e-6))


def _finishes(config: Any) -> Iterator[Finish]:
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier"):
        constant = getattr(config, name, None)
        if constant:
            scales += [constant, 1.0 / constant]
    cap = getattr(config, "final_logit_softcapping", None)
    for scale in scales:
        yield partial(_finish, scale=scale, cap=cap) if cap or scale != 1.0 else as_is


def as_is(logits: Tensor) -> Tensor:
    """The usual finish: none."""
    return logits


def _finish(logits: Tensor, *, scale: float, cap: float | None) -> Tensor:
    scaled = logits * scale
    return torch.tanh(scaled / cap) * cap if cap else scaled
