"""AdaLoRA's ranks: given a length of run, remembered from step to step, held at right angles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.model.causal import Model
from luthier.model.inits import ADAPTER
from luthier.model.method import AdaLora

if TYPE_CHECKING:
    from peft.tuners.adalora.layer import RankAllocator

_SENSITIVITY, _UNCERTAINTY, _KEPT = "sensitivity::", "uncertainty::", "kept::"


class Ranks:
    """PEFT's rank allocator, in a form that can be saved.

    Args:
        total: steps of the run.

    Raises:
        ConfigError: the run is too short for its phases.
    """

    def __init__(self, model: Model, method: AdaLora, total: int):
        network: Any = model.network
        self._network: Any = network
        self._tuner: Any = network.base_model
        self._config: Any = network.peft_config[ADAPTER]
        settle = total // 10 if method.settle_steps is None else method.settle_steps
        final = total * 3 // 10 if method.final_steps is None else method.final_steps
        if max(settle, 1) >= total - final:  # importance is measured before the step that decides by it
            raise ConfigError(
                f"a run of {total} steps has no room between {settle} steps to settle and {final} at the end",
                where="method.settle_steps",
                fix="Set method.settle_steps and method.final_steps lower, or train longer",
            )
        self._config.tinit, self._config.tfinal, self._config.total_step = settle, final, total
        self._last = total - final

    @property
    def _allocator(self) -> RankAllocator:
        return self._tuner.rankallocator

    def after(self, step: int) -> None:
        """Take ranks away as the budget says."""
        number = step + 1
        if number > self._last and not self._config.rank_pattern:
            # The step that would have settled the ranks was skipped.
            _, self._config.rank_pattern = self._allocator.update_and_allocate(
                self._tuner.model, number, force_mask=True
            )
        self._tuner.update_and_allocate(number)

    def penalty(self) -> Tensor:
        """`orthogonal` times the mean over all A and B of || P P^T - 1 ||_F.  []"""
        norms: list[Tensor] = []
        for name, weight in self._network.named_parameters():
            if f"lora_A.{ADAPTER}" in name or f"lora_B.{ADAPTER}" in name:
                products = weight @ weight.T if "lora_A" in name else weight.T @ weight
                norms.append((products - torch.eye(len(products), device=products.device)).norm())
        return self._config.orth_reg_weight * torch.stack(norms).mean()

    def state(self) -> dict[str, Tensor]:
        """Importance of every number, and which ranks are left."""
        found = {_SENSITIVITY + name: value for name, value in self._allocator.exp_avg_ipt.items()}
        found |= {_UNCERTAINTY + name: value for name, value in self._allocator.exp_avg_unc.items()}
        for name, kept in (self._config.rank_pattern or {}).items():
            found[_KEPT + name] = torch.tensor(kept)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        device = next(self._network.parameters()).device
        allocator: Any = self._allocator
        allocator.reset_ipt()
        kept: dict[str, list[bool]] = {}
        for full, value in state.items():
            kind, _, name = full.partition("::")
            if kind + "::" == _KEPT:
                kept[name] = value.tolist()
                continue
            held = allocator.exp_avg_ipt if kind + "::" == _SENSITIVITY else allocator.exp_avg_unc
            held[name] = value.to(device)
            allocator.ipt.setdefault(name, torch.zeros_like(held[name]))
        self._config.rank_pattern = kept or None
