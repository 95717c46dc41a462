"""Schedules, parameter groups, and optimizer state that saves and loads exactly."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.base.errors import ConfigError, MissingExtra
from luthier.engine import optim
from luthier.engine.config import OptimConfig
from luthier.engine.optim import Optimizer, parameter_groups, schedule
from luthier.model.rounding import bitsandbytes

NAMES = ["adamw", "adam", "sgd", "adagrad", "adafactor", "muon"]
HAS_8BIT = find_spec("bitsandbytes") is not None
WITH_8BIT = [
    *NAMES,
    *(
        pytest.param(name, marks=pytest.mark.skipif(not HAS_8BIT, reason="needs pip install 'luthier[quant]'"))
        for name in ("adamw_8bit", "lion_8bit")
    ),
]


def config(**changes: object) -> OptimConfig:
    return OptimConfig(**{"learning_rate": 1e-2, **changes})  # pyright: ignore[reportArgumentType]


def network() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        # Large enough for bitsandbytes, which keeps the state of less than 4,096 numbers in 32 bits.
        "embed_tokens.weight": nn.Parameter(torch.randn(600, 8)),
        "layer.weight": nn.Parameter(torch.randn(64, 72)),
        "layer.bias": nn.Parameter(torch.randn(8)),
    }


def run(named: dict[str, nn.Parameter], optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        for parameter in named.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1.0 / (step + 1))


@pytest.mark.parametrize("name", WITH_8BIT)
def test_a_loaded_state_goes_on_bit_for_bit(name: str, tmp_path: Path):
    straight, stopped = network(), network()
    whole = Optimizer(straight, config(name=name), lambda _: 1.0)
    run(straight, whole, range(6))

    first = Optimizer(stopped, config(name=name), lambda _: 1.0)
    run(stopped, first, range(3))
    save_file(first.state(), tmp_path / "optimizer.safetensors")
    second = Optimizer(stopped, config(name=name), lambda _: 1.0)
    second.load(load_file(tmp_path / "optimizer.safetensors"))
    run(stopped, second, range(3, 6))

    assert all(torch.equal(straight[key], stopped[key]) for key in straight)
    assert {key: value.tolist() for key, value in whole.state().items()} == {
        key: value.tolist() for key, value in second.state().items()
    }


@pytest.mark.parametrize("name", WITH_8BIT)
def test_every_optimizer_moves_every_weight(name: str):
    named, before = network(), network()
    run(named, Optimizer(named, config(name=name), lambda _: 1.0), range(2))
    assert all(not torch.equal(named[key], before[key]) for key in named)


def test_adamw_equals_torch_with_its_own_scheduler():
    ours, theirs = network(), network()
    settings = config(weight_decay=0.1, schedule="linear", warmup_steps=2)
    optimizer = Optimizer(ours, settings, lambda _: 1.0)
    reference = torch.optim.AdamW(
        [
            {"params": [theirs["embed_tokens.weight"], theirs["layer.weight"]], "weight_decay": 0.1},
            {"params": [theirs["layer.bias"]], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for step in range(6):
        factor = schedule(settings, step, 6)
        for group in reference.param_groups:
            group["lr"] = 1e-2 * factor
        for name in ours:
            torch.manual_seed(step)
            ours[name].grad = torch.randn_like(ours[name])
            theirs[name].grad = ours[name].grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
        optimizer.step(factor)
        reference.step()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_groups_split_decay_and_rate():
    groups = parameter_groups(network(), config(weight_decay=0.5), lambda name: 0.1 if "embed" in name else 1.0)
    found = {(group["weight_decay"], group["scale"]): len(group["params"]) for group in groups}
    assert found == {(0.5, 0.1): 1, (0.5, 1.0): 1, (0.0, 1.0): 1}


def test_the_scale_reaches_the_step():
    named = network()
    before = {name: weight.detach().clone() for name, weight in named.items()}
    settings = config(name="sgd", weight_decay=0.0, beta1=0.0)
    optimizer = Optimizer(named, settings, lambda name: 0.5 if name == "layer.bias" else 1.0)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(1.0)
    torch.testing.assert_close(before["layer.bias"] - named["layer.bias"], torch.full((8,), 0.005))
    torch.testing.assert_close(before["layer.weight"] - named["layer.weight"], torch.full((64, 72), 0.01))


def test_the_device_decides_whether_weights_move():
    moved, held = network(), network()
    settings = config(weight_decay=0.1)
    ours, plain = Optimizer(held, settings, lambda _: 1.0), Optimizer(moved, settings, lambda _: 1.0)
    assert ours.can_hold_still and not Optimizer(network(), config(name="sgd"), lambda _: 1.0).can_hold_still
    for step in range(4):
        for name in moved:
            torch.manual_seed(step)
            moved[name].grad = torch.randn_like(moved[name])
            held[name].grad = moved[name].grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
        before = {name: weight.detach().clone() for name, weight in held.items()}
        for weight in held.values():
            weight.grad, right = torch.full_like(weight, float("nan")), weight.grad
            weight.right = right  # pyright: ignore[reportAttributeAccessIssue]
        ours.step(1.0, unless=torch.ones(()))
        assert all(torch.equal(before[name], weight) for name, weight in held.items())
        for weight in held.values():
            weight.grad = weight.right  # pyright: ignore[reportAttributeAccessIssue]
        ours.step(1.0, unless=torch.zeros(()))
        plain.step(1.0)
    assert all(torch.equal(moved[name], held[name]) for name in moved), "to the bit, as if nothing had been asked"
    states = ours.state(), plain.state()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_linear_schedule_is_transformers_own():
    transformers = pytest.importorskip("transformers")
    weight = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([weight], lr=1.0)
    lr = transformers.get_cosine_schedule_with_warmup(reference, 3, 12)
    settings = config(schedule="cosine", warmup_steps=3)
    ours, theirs = [], []
    for step in range(12):
        ours.append(schedule(settings, step, 12))
        theirs.append(lr.get_last_lr()[0])
        reference.step()
        lr.step()
    # Ours starts one warm-up step earlier, so that the first step already moves.
    assert ours[0] == pytest.approx(1 / 3) and theirs[0] == 0.0
    assert ours[3:] == pytest.approx(theirs[3:])


@pytest.mark.parametrize(
    ("changes", "step", "expected"),
    [
        ({"schedule": "constant"}, 9, 1.0),
        ({"schedule": "linear"}, 0, 1.0),
        ({"schedule": "linear"}, 5, 0.5),
        ({"schedule": "cosine", "min_ratio": 0.1}, 10, 0.1),
        ({"schedule": "linear", "warmup_ratio": 0.5}, 1, 0.4),
        ({"schedule": "linear", "warmup_ratio": 0.5, "warmup_steps": 2}, 0, 0.5),
    ],
)
def test_schedule_values(changes: dict[str, object], step: int, expected: float):
    assert schedule(config(**changes), step, 10) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit"])
def test_a_missing_library_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    bitsandbytes.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for act in (
        lambda: optim.check(config(name=name), torch.device("cuda", 0)),
        lambda: Optimizer(network(), config(name=name), lambda _: 1.0),
    ):
        with pytest.raises(MissingExtra, match=rf"--optim {name} needs .*bitsandbytes.*luthier\[quant\]"):
            act()


@pytest.mark.skipif(not HAS_8BIT, reason="needs pip install 'luthier[quant]'")
@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_state_needs_a_gpu(name: str):
    with pytest.raises(ConfigError, match=r"there is no GPU. Use adamw or adamw_8bit"):
        optim.check(config(name=name), torch.device("cpu"))


@pytest.mark.skipif(not HAS_8BIT, reason="needs pip install 'luthier[quant]'")
def test_an_optimizer_without_kernels_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch):
    optim.check(config(name="adamw_8bit"), torch.device("cpu"))

    def step(self: object, *args: object) -> None:
        raise RuntimeError("no kernel image is available\nfor execution on the device")

    monkeypatch.setattr(bitsandbytes().optim.AdamW8bit, "update_step", step)
    with pytest.raises(
        ConfigError, match=r"--optim adamw_8bit: .*this cpu \(no kernel image is available\). Use adamw"
    ):
        optim.check(config(name="adamw_8bit"), torch.device("cpu"))


def test_loaded_state_is_put_where_a_paged_optimizer_keeps_it():
    """bitsandbytes moves state that it did not page itself onto the GPU for good."""
    named = network()
    optimizer = Optimizer(named, config(name="sgd"), lambda _: 1.0)
    asked: list[tuple[nn.Parameter, torch.dtype]] = []

    class Paged(torch.optim.SGD):
        is_paged = True

        def get_state_buffer(self, p: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
            asked.append((p, dtype))
            buffer = torch.zeros(p.shape, dtype=dtype)
            buffer.paged = True  # pyright: ignore[reportAttributeAccessIssue]
            return buffer

    optimizer.parts = [Paged([{"params": list(named.values()), "scale": 1.0}])]
    value = torch.arange(64 * 72).view(64, 72).to(torch.uint8)
    optimizer.load({"layer.weight::state1": value, "layer.weight::absmax1": torch.ones(3)})
    state = optimizer.parts[0].state[named["layer.weight"]]
    assert asked == [(named["layer.weight"], torch.uint8)]
    assert state["state1"].paged and torch.equal(state["state1"], value)
    assert not hasattr(state["absmax1"], "paged")


@pytest.mark.skipif(not HAS_8BIT, reason="needs pip install 'luthier[quant]'")
def test_eight_bit_adamw_holds_bytes_and_stays_near_adamw():
    small, plain, start = network(), network(), network()
    eight, full = (Optimizer(n, config(name=o), lambda _: 1.0) for n, o in ((small, "adamw_8bit"), (plain, "adamw")))
    run(small, eight, range(6))
    run(plain, full, range(6))
    state = eight.state()
    assert state["layer.weight::state1"].dtype == torch.uint8
    assert {state[f"{name}::exp_avg"].dtype for name in ("layer.bias", "embed_tokens.weight")} == {torch.float32}
    for name in start:
        moved = plain[name] - start[name]
        assert (small[name] - plain[name]).norm() < 0.1 * moved.norm()


@pytest.mark.skipif(not HAS_8BIT, reason="needs pip install 'luthier[quant]'")
def test_eight_bit_lion_is_lion():
    """Chen et al. 2023, algorithm 2, with decoupled decay; signs agree but where they hang on a rounded zero."""
    ours, theirs = network(), network()
    momentum = {name: torch.zeros_like(weight) for name, weight in theirs.items()}
    settings = config(name="lion_8bit", weight_decay=0.1, beta1=0.9, beta2=0.99)
    optimizer = Optimizer(ours, settings, lambda _: 1.0)
    for step in range(4):
        for name, weight in theirs.items():
            torch.manual_seed(step)
            ours[name].grad = gradient = torch.randn_like(weight)
            decay = 0.1 if weight.ndim == 2 else 0.0
            with torch.no_grad():
                update = (0.9 * momentum[name] + 0.1 * gradient).sign()
                weight -= 1e-2 * (update + decay * weight)
            momentum[name] = 0.99 * momentum[name] + 0.01 * gradient
        optimizer.step(1.0)
    for name, weight in theirs.items():
        wrong = (ours[name] - weight).abs() > 1e-5
        assert wrong.float().mean() < (0.02 if name == "layer.weight" else 1e-6)


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit"])
def test_not_waiting_for_the_device_changes_nothing(name: str) -> None:
    kind = getattr(pytest.importorskip("bitsandbytes").optim, name)
    torch.manual_seed(0)
    starts, gradients = torch.randn(2, 64, 128), torch.randn(5, 2, 64, 128)
    ends: list[list[Tensor]] = []
    for optimizer_of in (kind, optim._unhurried(kind)):  # pyright: ignore[reportPrivateUsage]
        weights = [nn.Parameter(start.clone()) for start in starts]
        optimizer = optimizer_of(weights, lr=1e-2)
        for parts in gradients:
            for weight, part in zip(weights, parts, strict=True):
                weight.grad = part.clone()
            optimizer.step()
        ends.append([weight.detach() for weight in weights])
    for ours, theirs in zip(*ends, strict=True):
        assert torch.equal(ours, theirs) and not torch.equal(ours, starts[0])
