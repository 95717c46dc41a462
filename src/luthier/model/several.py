"""Many LoRA adapters over one base, used in one step by different sequences.

The base is computed once for all tokens; each adapter adds its product to the tokens that ask for it.

Legend: T tokens of a step, I input width, O output width, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import linear

from luthier.base.errors import ModelError
from luthier.model.adapterfile import FILE, adapter_folder
from luthier.model.causal import Model

_PREFIX = "base_model.model."
_MERGE = "Merge it first: luthier export --adapters DIR --merge_lora true"


@dataclass(frozen=True, eq=False)
class Adapter:
    """What one adapter adds, by the name of the layer: (A_RI, B_OR times the scale)."""

    products: Mapping[str, tuple[Tensor, Tensor]]


class Several:
    """The adapters of one model.  Made once for a model; nothing is changed while no sequence uses an adapter."""

    def __init__(self, model: Model):
        self._model = model
        self._layers = dict(model.base.named_modules())
        self._hooked: set[str] = set()
        self._users: list[tuple[Adapter, Tensor | None]] = []

    def read(self, folders: Sequence[str]) -> Adapter:
        """An adapter from its folder; of several, which were trained one over the other, the sum.

        Raises:
            ModelError: it is no plain LoRA adapter, or does not fit the model.
        """
        read = [self._read(folder) for folder in folders]
        products: dict[str, tuple[Tensor, Tensor]] = {}
        for name in sorted({name for parts in read for name in parts}):
            parts = [part[name] for part in read if name in part]
            products[name] = torch.cat([a for a, _ in parts]), torch.cat([b for _, b in parts], dim=1)
            self._hook(name)
        return Adapter(products)

    @contextmanager
    def used(self, users: Sequence[Adapter | None]) -> Generator[None]:
        """While it lasts, each token of the row has the adapter that stands in its place."""
        for adapter in dict.fromkeys(user for user in users if user is not None):
            rows = [row for row, user in enumerate(users) if user is adapter]
            everywhere = len(rows) == len(users)
            self._users.append((adapter, None if everywhere else torch.tensor(rows, device=self._model.device)))
        try:
            yield
        finally:
            self._users.clear()

    def _hook(self, name: str) -> None:
        if name in self._hooked:
            return
        self._hooked.add(name)

        def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for adapter, rows in self._users:
                if name in adapter.products:
                    a_RI, b_OR = adapter.products[name]
                    x_TI, y_TO = inputs[0].flatten(0, -2), output.flatten(0, -2)
                    added = linear(linear((x_TI if rows is None else x_TI[rows]).to(a_RI.dtype), a_RI), b_OR)
                    added = added.to(output.dtype)
                    output = (y_TO + added if rows is None else y_TO.index_add(0, rows, added)).view_as(output)
            return output

        self._layers[name].register_forward_hook(add)

    def _read(self, named: str) -> dict[str, tuple[Tensor, Tensor]]:
        from peft import LoraConfig, PeftConfig
        from peft.utils.other import get_pattern_key

        folder = adapter_folder(self._model.config, named)
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig) or config.use_dora or config.modules_to_save:
            raise ModelError("only plain LoRA adapters share a base", where=str(folder), fix=_MERGE)
        with safe_open(folder / f"{FILE}.safetensors", framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for key in sorted(key for key in state if key.endswith(".lora_A.weight")):
            name = key.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            a_RI, b_OR = state.pop(key), state.pop(key.replace(".lora_A.", ".lora_B."), None)
            layer: Any = self._layers.get(name)
            if b_OR is None or not _fits(layer, a_RI, b_OR):
                raise ModelError(
                    f"the adapter does not fit the base at {name}",
                    where=str(folder),
                    code="adapter_differs",
                    fix="Use it with the model it was trained on",
                )
            patterns: dict[str, Any] = config.alpha_pattern or {}
            alpha = float(patterns.get(get_pattern_key(list(patterns), name), config.lora_alpha))
            scale = alpha / (math.sqrt(a_RI.shape[0]) if config.use_rslora else a_RI.shape[0])
            place = {"device": self._model.device, "dtype": self._model.dtype}
            found[name] = a_RI.to(**place), (b_OR.float() * scale).to(**place)
        if state or not found:
            raise ModelError(
                f"only plain LoRA adapters share a base, this one holds {next(iter(state), 'nothing')}",
                where=str(folder),
                fix=_MERGE,
            )
        return found


def _fits(layer: Any, a_RI: Tensor, b_OR: Tensor) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.in_features == a_RI.shape[1] and layer.out_features == b_OR.shape[0]
    weight = getattr(layer, "weight", None)  # transformers' Conv1D holds it the other way round
    return isinstance(weight, Tensor) and weight.shape == (a_RI.shape[1], b_OR.shape[0])
