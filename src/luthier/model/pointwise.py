"""The parts of a decoder layer that are no matrix products, each with its derivative written out.

Everything is computed in float32 and rounded once, into memory that the caller provides.  These are the plain forms;
`model.kernels` holds the same functions as one GPU kernel each.

Legend: T packed tokens, D width of the model, F width of the feed-forward part, N heads of some kind, H query heads,
G key/value heads, E head width, R rows, V vocabulary, O outputs of a product, K rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from luthier.model.float8 import round_rows


@dataclass(frozen=True, slots=True)
class Rider:
    """One matrix of an adapter, and its seat beside a frozen weight, of the arithmetic's type."""

    matrix: nn.Parameter
    scale: float
    seat: Tensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """left right^T, which a product [T, O] still lacks: whoever reads the product adds it on the way."""

    left_TK: Tensor
    right_OK: Tensor

    def dense(self) -> Tensor:
        """float32 [T, O]"""
        return self.left_TK.float() @ self.right_OK.float().t()


@dataclass(frozen=True, slots=True)
class Around:
    """The adapters on both sides of the activation, whose gradients are sums over what passes there."""

    u_TK: Tensor
    """what the gate's and then the up product's adapters hold in the middle"""
    ranks: Sequence[int]
    """of the gate's and of the up product's"""
    du_TK: Tensor
    """the gradient of what the down product's adapter holds in the middle"""


@dataclass(frozen=True, slots=True)
class AroundGradients:
    """float32."""

    da_KF: Tensor
    """of the down product's A"""
    dbs_FK: tuple[Tensor, Tensor]
    """of the gate's and the up product's B, without their scales"""


class Pointwise(Protocol):
    """The functions of this module, wherever they run."""

    def norm(self, out: Tensor, h: Tensor, weight: Tensor, eps: float, also: Tensor | None = None) -> None: ...
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
    ) -> Tensor | None: ...
    def copy(self, out_TD: Tensor, x_TD: Tensor) -> None: ...
    def rotate(self, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None: ...
    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None: ...
    def swiglu(self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None) -> None: ...
    def swiglu_gradient(
        self,
        dgate_up_TF: Tensor,
        act_TF: Tensor | None,
        dact_TF: Tensor,
        gate_up_TF: Tensor,
        lacks: LowRank | None,
        dact_lacks: LowRank | None,
        around: Around | None,
    ) -> AroundGradients | None: ...
    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]: ...
    def transpose(self, codes_OI: Tensor) -> Tensor: ...
    def score(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]: ...
    def score_gradient(
        self, logits_RV: Tensor, targets_R: Tensor, norm_R: Tensor, dlogprobs_R: Tensor | None
    ) -> None: ...
    def board(self, riders: Sequence[Rider]) -> Callable[[], None]: ...


class Plain:
    """In plain PyTorch, on any device."""

    def norm(self, out: Tensor, h: Tensor, weight: Tensor, eps: float, also: Tensor | None = None) -> None:
        """out = h / rms(h) * weight over the last axis (Zhang & Sennrich 2019).  h: [T, D] or [T, N, E]

        also: where h itself is copied on the way, [T, D].
        """
        h32 = h.float()
        out.copy_(h32 * torch.rsqrt(h32.square().mean(-1, keepdim=True) + eps) * weight.float())
        if also is not None:
            also.copy_(h)

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
        """dh = around + (d norm / d h)^T dx; x = the norm's output again.  dh may be dx itself.

        around: what flows around the norm, along the residual stream.

        Returns:
            d weight, float32, when it moves.
        """
        h32, dx32 = h.float(), dx.float()
        scale = torch.rsqrt(h32.square().mean(-1, keepdim=True) + eps)
        normed = h32 * scale
        weighted = dx32 * weight.float()
        inner = scale * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
        dweight = (dx32 * normed).flatten(0, -2).sum(0) if weight_moves else None
        if x is not None:
            x.copy_(normed * weight.float())
        dh.copy_(inner if around is None else inner + around)
        return dweight

    def copy(self, out_TD: Tensor, x_TD: Tensor) -> None:
        """out = x, between rows that may lie further apart than they are long."""
        out_TD.copy_(x_TD)

    def rotate(self, heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> None:
        """Rotary position embedding (Su et al. 2021) in place, the two halves of a head forming the pairs."""
        heads_TNE.copy_(_rotated(heads_TNE, cos_TE, sin_TE))

    def rotate_back(
        self, out_TNE: Tensor, dq_THE: Tensor, dk_TGE: Tensor, dv_TGE: Tensor, cos_TE: Tensor, sin_TE: Tensor
    ) -> None:
        """The derivative of `rotate` (a rotation back) for queries and keys side by side, and the values' as it is."""
        out_TNE.copy_(torch.cat((_rotated(dq_THE, cos_TE, -sin_TE), _rotated(dk_TGE, cos_TE, -sin_TE), dv_TGE), dim=1))

    def swiglu(self, out_TF: Tensor, gate_up_TF: Tensor, lacks: LowRank | None) -> None:
        """silu(gate) * up (Shazeer 2020), of gate and up side by side with what they lack.  [T, 2F] -> [T, F]"""
        gate, up = _whole(gate_up_TF, lacks).chunk(2, dim=-1)
        out_TF.copy_(torch.nn.functional.silu(gate) * up)

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
        """d gate and d up side by side [T, 2F], and `swiglu`'s output again [T, F] where it is wanted.

        Where nothing is lacking and nothing `around`, dgate_up may be gate_up itself, and act dact.

        Returns:
            The gradients of the adapters `around`.
        """
        dact, (gate, up) = _whole(dact_TF, dact_lacks), _whole(gate_up_TF, lacks).chunk(2, dim=-1)
        share = torch.sigmoid(gate)
        silu = gate * share
        act, dgate, dup = silu * up, dact * up * (share + silu * (1 - share)), dact * silu
        if act_TF is not None:
            act_TF.copy_(act)
        dgate_up_TF.copy_(torch.cat((dgate, dup), dim=-1))
        if around is None:
            return None
        of_gate, of_up = around.u_TK.float().split(around.ranks, dim=1)
        rounded = [part.to(dgate_up_TF.dtype).float() for part in (act, dgate, dup)]
        return AroundGradients(
            around.du_TK.float().t() @ rounded[0], (rounded[1].t() @ of_gate, rounded[2].t() @ of_up)
        )

    def round_rows(self, x_TI: Tensor, columns_I: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (times `columns_I`) in 8-bit floating point, and the scale of each row: `float8.round_rows`."""
        return round_rows(x_TI, columns_I)

    def transpose(self, codes_OI: Tensor) -> Tensor:
        """[O, I] -> [I, O], of one-byte numbers."""
        return codes_OI.view(torch.int8).t().contiguous().view(codes_OI.dtype)

    def score(self, logits_RV: Tensor, targets_R: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log p(target) (float32), whether the target is the likeliest token, and the log of the softmax's sum."""
        logits = logits_RV.float()
        norm_R = torch.logsumexp(logits, dim=-1)
        target_R = logits.gather(1, targets_R[:, None])[:, 0]
        return target_R - norm_R, logits_RV.argmax(dim=-1) == targets_R, norm_R

    def score_gradient(self, logits_RV: Tensor, targets_R: Tensor, norm_R: Tensor, dlogprobs_R: Tensor | None) -> None:
        """The logits become their own gradient, given that of the log-probabilities (1 when None)."""
        gradient = torch.exp(logits_RV.float() - norm_R[:, None]).neg_()
        gradient.scatter_add_(1, targets_R[:, None], torch.ones_like(gradient[:, :1]))
        logits_RV.copy_(gradient if dlogprobs_R is None else gradient * dlogprobs_R[:, None])

    def board(self, riders: Sequence[Rider]) -> Callable[[], None]:
        """What puts the adapters' present values, scaled, into their seats; to be called before a forward pass."""
        matrices: list[Tensor] = [rider.matrix for rider in riders]
        seats = [rider.seat for rider in riders]
        scales = [rider.scale for rider in riders]

        @torch.no_grad()
        def go() -> None:
            if riders:
                scaled = torch._foreach_mul(matrices, scales)  # pyright: ignore[reportPrivateUsage]
                torch._foreach_copy_(seats, scaled)  # pyright: ignore[reportPrivateUsage]

        return go


def _whole(product_TO: Tensor, lacks: LowRank | None) -> Tensor:
    return product_TO.float() if lacks is None else product_TO.float() + lacks.dense()


def _rotated(heads_TNE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    heads, half = heads_TNE.float(), heads_TNE.shape[-1] // 2
    turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return (heads * cos_TE[:, None] + turned * sin_TE[:, None]).to(heads_TNE.dtype)
