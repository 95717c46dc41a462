"""Invariant 1 over processes: data parallel or sharded, any number of them takes the step of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from ranks import together
from test_step import build, cut, groups

from luthier.data.pack import micro_batches
from luthier.data.render import Renderer
from luthier.engine.mesh import open_mesh
from luthier.engine.step import begin
from luthier.model.config import Freeze, Full, Lora, Method
from luthier.model.layer import Keep
from luthier.model.sharding import shard, whole
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

METHODS: dict[str, Method] = {
    "full": Full(),
    "lora": Lora(rank=4, init="gaussian"),
    "freeze": Freeze(last_layers=1),
    "head": Freeze(pattern="lm_head"),
}


def steps_of(folder: Path, method: Method, sharded: bool, keep: Keep, shape: dict[str, bool]) -> list[Any]:
    """Loss, gradient norm and tokens of two steps of this process and all others, and the weights after them."""
    with open_mesh("cpu") as mesh:
        model, samples = build(folder, method), groups(15)
        model.train_mode(keep)
        if sharded:
            shard(model, mesh.device)
            assert model.sharded is not None
            model.sharded.once = shape.get("once", model.sharded.once)
        bins = micro_batches([len(group) for group in samples], 100, mesh.world)
        rows: list[Any] = []
        for _ in range(2):  # the second step would show a gradient that was not summed
            mine = cut(samples, bins[mesh.rank :: mesh.world])
            result = begin(model, Language(Sft(), cast(Renderer, None)), mine, mesh, max_norm=1.0).read()
            with torch.no_grad():
                for weight in model.trained().values():
                    assert weight.grad is not None
                    weight -= 0.1 * weight.grad
                    weight.grad = None
            rows.append([result.loss, result.grad_norm, result.tokens])
        return [rows, [float(whole(weight).detach().double().square().sum()) for weight in model.trained().values()]]


SEVERAL: list[tuple[str, int, bool, Keep, dict[str, bool]]] = [
    ("full", 2, False, "most", {}),
    ("lora", 2, False, "input", {}),
    ("full", 2, True, "most", {}),
    ("full", 2, True, "most", {"once": True}),
    ("full", 3, True, "input", {}),  # no weight has a number of rows that 3 divides
    ("lora", 2, True, "most", {"once": False}),
    ("lora", 2, True, "input", {"once": True}),
    ("freeze", 2, True, "most", {}),
    ("head", 2, True, "most", {}),
]


@pytest.mark.parametrize(("method", "count", "sharded", "keep", "shape"), SEVERAL)
def test_several_processes_take_the_step_of_one(
    tiny_model_dir: Callable[..., Path], method: str, count: int, sharded: bool, keep: Keep, shape: dict[str, bool]
):
    folder = tiny_model_dir("qwen2-untied" if method == "head" else "qwen2")
    one, squares = steps_of(folder, METHODS[method], False, "most", {})
    several = together(count, lambda: steps_of(folder, METHODS[method], sharded, keep, shape))
    for rows, weights in several:
        assert np.array(rows) == pytest.approx(np.array(one), rel=1e-6)
        assert weights == pytest.approx(squares, rel=1e-6, abs=1e-9)
    assert one[1][0] < one[0][0]


@pytest.mark.parametrize("shape", ["llama", "gemma3", "phi3", "gpt2"])
def test_sharded_models_of_other_shapes_take_the_step_of_one(tiny_model_dir: Callable[..., Path], shape: str):
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # other processes draw other numbers
    folder = tiny_model_dir(shape, **still if shape == "gpt2" else {})
    one, squares = steps_of(folder, Full(), False, "most", {})
    for rows, weights in together(2, lambda: steps_of(folder, Full(), True, "most", {})):
        assert np.array(rows) == pytest.approx(np.array(one), rel=2e-6)
        assert weights == pytest.approx(squares, rel=1e-6, abs=1e-9)
