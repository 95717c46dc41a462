"""A model without numbers: every weight has its shape and type, and none its memory.

It goes through the same methods and the same layers as a real one, so what they hold can be counted before anything is
loaded, on a machine that could not hold it.

Legend: see `model.pointwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerFast

from luthier.model import attention, heads, lowbit
from luthier.model.architecture import read_settings
from luthier.model.calling import calling_of
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.counted import replaced
from luthier.model.folder import model_folder
from luthier.model.heads import CAUSAL, Head
from luthier.model.load import quiet
from luthier.model.pointwise import Around, AroundGradients, LowRank, Rider

META = torch.device("meta")


def shadow(
    config: ModelConfig, dtype: torch.dtype, *, tokenizer: PreTrainedTokenizerFast, head: Head = CAUSAL
) -> Model:
    """What `load_model` would give, of the model's config.json alone; weights on the meta device.

    Whether sequences can be packed is believed of the architecture where loading would try it out.

    Raises:
        ModelError: the config cannot be read, or is of another kind of model.
    """
    folder = model_folder(config)
    settings = read_settings(folder, config, head.kind)
    pad: Any = tokenizer.pad_token_id
    heads.configure(settings, head, pad)
    with quiet(), META:
        make: Any = getattr(transformers, heads.CLASSES[head.kind])
        network = make.from_config(
            settings,
            dtype=dtype,
            trust_remote_code=config.trust_remote_code,
            attn_implementation=attention.usual(settings, config.attention),
        )
    network.name_or_path = str(folder)
    network.requires_grad_(False).eval()
    if config.quant.on:
        lowbit.sketch(network, config.quant, dtype)
    calling = calling_of(network, head)
    asked_plain = config.attention in ("sdpa", "eager")
    if not asked_plain and not settings.is_encoder_decoder and attention.obstacle(network) is None:
        network.set_attn_implementation(attention.NAME)
        calling = replace(calling, packed=True)
    positions: Any = getattr(settings.get_text_config(), "max_position_embeddings", None)
    return Model(
        network,
        tokenizer,
        device=META,
        dtype=dtype,
        max_length=int(positions or 2**31 - 1),
        config=config,
        calling=calling,
        note=None,
        kind=head,
    )


@contextmanager
def unpermuted() -> Generator[None]:
    """While this lasts, BOFT's layers take their permutations as matrices without numbers.

    PEFT writes them entry by entry, by indices that it looks at.
    """
    from peft.tuners.boft.layer import BOFTLayer

    unwritten: dict[str, Callable[..., Tensor]] = {
        "block_butterfly_perm": lambda _layer, size, *_: torch.empty(size, dtype=torch.int64),
        "perm2mat": lambda _layer, indices: torch.empty(len(indices), len(indices)),
    }
    with replaced(BOFTLayer, unwritten):
        yield


@contextmanager
def on_cpu(*models: Model) -> Generator[None]:
    """While this lasts, the weights say that they are on the CPU, and types are chosen as they are for real ones.

    Autocast does not see tensors of the meta device.  The weights are other objects meanwhile.
    """
    networks = [one for model in models for one in (model.network, *(other.base for other in model.others.values()))]
    places = [store for network in networks for module in network.modules() for store in _stores(module)]
    kept = [dict(store) for store in places]
    by_hand = [model.runs_by_hand for model in models]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            known: dict[int, Tensor] = {}  # tied weights stay one
            for store in places:
                for name, held in store.items():
                    if held is not None:
                        if id(held) not in known:
                            known[id(held)] = _pretender(held)
                        store[name] = known[id(held)]
            for model, hand in zip(models, by_hand, strict=True):
                _look_again(model, torch.device("cpu"), hand)
            yield
    finally:
        for store, weights in zip(places, kept, strict=True):
            store.update(weights)
        for model, hand in zip(models, by_hand, strict=True):
            _look_again(model, META, hand)


def _look_again(model: Model, device: torch.device, by_hand: bool) -> None:
    """Find the weights anew, which are others now."""
    model.device = device
    model.settle()
    if by_hand:
        model.by_hand(Sizes())


def _stores(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    parameters: Any = module._parameters  # pyright: ignore[reportPrivateUsage]
    buffers: Any = module._buffers  # pyright: ignore[reportPrivateUsage]
    return parameters, buffers


def _pretender(held: Tensor) -> Tensor:
    like = torch.empty(held.shape, dtype=held.dtype)
    return nn.Parameter(like, requires_grad=held.requires_grad) if isinstance(held, nn.Parameter) else like


# As in `model.kernels`, which cannot be imported without Triton; a test compares them.
PROGRAMS, SPLITS, LEAST_RANKS = 1024, 8, 16


class Sizes:
    """`model.kernels.Fused` without its programs: what they write to beside the memory they are given."""

    def norm(self, out: Tensor, h: Tensor, weight: Tensor, eps: float, also: Tensor | None = None) -> None:
        """Nothing."""

    def norm_gradient(
        self,
        dh: Tensor,
        x: Tensor | None,
        dx: Tensor,
        h: Tensor,
        weight: Tensor,
        eps: float,
        around: Tensor | None,
        *,
        weight_moves: bool,
    ) -> Tensor | None:
        """A part of the weight's gradient for each program, and their sum."""
        if not weight_moves:
            return None
        rows = h.numel() // h.shape[-1]
        return h.new_empty(min(rows, PROGRAMS), h.shape[-1], dtype=torch.float32).sum(0)

    def copy(self, out_TD: Tensor, x_TD: Tensor) -> None:
        """Nothing."""

    def rotate(self, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None:
        """Nothing."""

    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None:
        """Nothing."""

    def swiglu(self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None) -> None:
        """Nothing."""

    def swiglu_gradient(
        self,
        dgate_up_TF: Tensor,
        act_TF: Tensor | None,
        dact_TF: Tensor,
        gate_up_TF: Tensor,
        lacks: LowRank | None,
        dact_lacks: LowRank | None,
        around: Around | None,
    ) -> AroundGradients | None:
        """Parts of the adapters' gradients for each group of programs, and their sums."""
        if around is None:
            return None
        (of_gate, of_up), of_down = around.ranks, around.du_TK.shape[1]
        ranks = max(LEAST_RANKS, 1 << (max(of_gate, of_up, of_down) - 1).bit_length())
        parts = dact_TF.new_empty(SPLITS, 3, ranks, dact_TF.shape[1], dtype=torch.float32)
        da_down, db_gate, db_up = parts.sum(0)
        return AroundGradients(da_down[:of_down], (db_gate[:of_gate].t(), db_up[:of_up].t()))

    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes and scales."""
        return x_TI.new_empty(x_TI.shape, dtype=torch.float8_e4m3fn), x_TI.new_empty(len(x_TI), dtype=torch.float32)

    def transpose(self, codes_OI: Tensor) -> Tensor:
        """The other way round."""
        return codes_OI.new_empty(codes_OI.shape[1], codes_OI.shape[0])

    def score(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three numbers a row."""
        logprobs_R = logits_RV.new_empty(len(logits_RV), dtype=torch.float32)
        return logprobs_R, torch.empty_like(logprobs_R, dtype=torch.bool), torch.empty_like(logprobs_R)

    def score_gradient(self, logits_RV: Tensor, targets_R: Tensor, norm_R: Tensor, dlogprobs_R: Tensor | None) -> None:
        """Nothing: it is written over the logits."""

    def board(self, riders: Sequence[Rider]) -> Callable[[], None]:
        """Nothing worth counting."""
        return lambda: None
