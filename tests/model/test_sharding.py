"""Sharded models: what each process holds, what is saved of them, and how parts and wholes come from each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import together
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from luthier.base.errors import ModelError
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import open_mesh
from luthier.engine.optim import Optimizer
from luthier.model import methods, sharding
from luthier.model.config import Freeze, Full, Lora, Method, ModelConfig
from luthier.model.lending import lending
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.sharding import held, part, shard, whole

CPU = torch.device("cpu")
METHODS: dict[str, tuple[str, Method, str]] = {
    "full-tied": ("qwen2", Full(), "float32"),
    "full-untied": ("qwen2-untied", Full(), "float32"),
    "full-bfloat16": ("qwen2", Full(), "bfloat16"),
    "freeze": ("llama", Freeze(last_layers=1), "bfloat16"),
    "lora-dora": ("qwen2", Lora(rank=4, dora=True, modules_to_save=("embed_tokens", "lm_head")), "float32"),
    "lora-pissa": ("qwen2-untied", Lora(rank=4, init="pissa"), "bfloat16"),
}


def opened(folder: Path, method: Method, dtype: str = "float32", **apply: Any) -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype})
    model = load_model(config, CPU, tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method, **apply)
    return model


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_of_a_sharded_model_is_what_is_saved_of_a_whole_one(
    tiny_model_dir: Callable[..., Path], tmp_path: Path, name: str
):
    shape, method, dtype = METHODS[name]
    folder = tiny_model_dir(shape)

    def save_sharded() -> None:
        with open_mesh("cpu") as mesh:
            model = opened(folder, method, dtype, widen=False)
            shard(model, mesh.device)
            with lending(mesh, model.network.parameters()) as lent:
                if mesh.leads:
                    methods.save(model, tmp_path / "sharded", lent)

    together(3, save_sharded)
    methods.save(opened(folder, method, dtype), tmp_path / "whole")
    assert hashes(tmp_path / "sharded") == hashes(tmp_path / "whole")


def test_each_process_holds_its_part_of_weights_gradients_and_optimizer_state(tiny_model_dir: Callable[..., Path]):
    folder = tiny_model_dir("qwen2")

    def measure() -> list[int]:
        with open_mesh("cpu") as mesh:
            model = opened(folder, Full(), widen=False)
            shard(model, mesh.device)
            named = model.trained()
            optimizer = Optimizer(named, OptimConfig(learning_rate=0.1), lambda _: 1.0)
            for weight in named.values():
                weight.grad = torch.zeros_like(weight)
            optimizer.step(1.0)
            weights, state = [*named.values()], [*optimizer.state().values()]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            return [sum(held(tensor).nbytes for tensor in kind) for kind in (weights, gradients, state)]

    whole_bytes = sum(weight.nbytes for weight in opened(folder, Full()).trained().values())
    first, second = together(2, measure)
    assert first[0] + second[0] == first[1] + second[1] == whole_bytes
    assert abs(first[0] - second[0]) <= 0.02 * whole_bytes
    assert first[2] + second[2] == pytest.approx(2 * whole_bytes, rel=0.01)  # and one counter for each weight


def test_parts_and_wholes_come_from_each_other_for_any_number_of_rows():
    def turn_round() -> bool:
        with open_mesh("cpu") as mesh:
            layout = init_device_mesh("cpu", (mesh.world,))
            for rows in range(1, 9):
                value = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))
                like = distribute_tensor(torch.zeros(rows, 3), layout, [Shard(0)])
                mine = part(value, like)
                assert held(mine).shape == held(like).shape
                assert torch.equal(whole(mine), value) and torch.equal(part(value, value), value)
                like.copy_(mine)
                assert torch.equal(whole(like), value)
        return True

    assert together(3, turn_round) == [True] * 3


def test_lending_ends_with_the_leading_process_however_that_ends():
    def lend() -> str:
        with open_mesh("cpu") as mesh:
            layout = init_device_mesh("cpu", (mesh.world,))
            spread = [distribute_tensor(torch.full((5, 2), float(n)), layout, [Shard(0)]) for n in range(3)]
            plain = torch.ones(2)
            try:
                with lending(mesh, [*spread, plain]) as lent:
                    if mesh.leads:
                        assert torch.equal(lent(spread[2].detach()), torch.full((5, 2), 2.0))
                        assert torch.equal(lent(plain), plain)
                        raise OSError("the disk is full")
            except OSError:
                return "full" if mesh.any(True) else ""
            return "lent" if mesh.any(False) else ""

    assert together(2, lend) == ["full", "lent"]


def test_muon_moves_sharded_matrices_as_it_moves_whole_ones():
    def moved(split: bool) -> list[Tensor]:
        found: list[Tensor] = []
        for shape in ((32, 64), (64, 32), (7, 5)):
            generator = torch.Generator().manual_seed(shape[0])
            weight, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
            before = weight.clone()
            if split:
                layout = init_device_mesh("cpu", (2,))
                weight, gradient = (distribute_tensor(tensor, layout, [Shard(0)]) for tensor in (weight, gradient))
            parameter = torch.nn.Parameter(weight)
            parameter.grad = gradient
            settings = OptimConfig(name="muon", learning_rate=0.1, weight_decay=0.0)
            Optimizer({"w": parameter}, settings, lambda _: 1.0).step(1.0)
            found.append(whole(parameter).detach() - before)
        return found

    def sharded() -> list[Any]:
        with open_mesh("cpu"):
            return [tensor.tolist() for tensor in moved(True)]

    for ours, alone in zip(together(2, sharded)[0], moved(False), strict=True):
        # It orthogonalises in bfloat16 (torch's own implementation), so only to a few percent.
        assert float((torch.tensor(ours) - alone).norm() / alone.norm()) < 0.05


def test_a_decoder_without_layers_to_be_found_is_named(tiny_model_dir: Callable[..., Path]):
    model = opened(tiny_model_dir("qwen2"), Full())
    model.base.config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="layers of Qwen2ForCausalLM cannot be found"):
        sharding._layers(model)
