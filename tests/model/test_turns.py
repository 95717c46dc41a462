"""Who moves in a step, what is remembered, and noise that depends on the sample alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.base.errors import ConfigError
from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.method import AdaLora, Gradual, Lisa, Prompt
from luthier.model.noise import Noise
from luthier.model.ranks import Ranks
from luthier.model.turns import EMBEDDING, ModelTurns, gradual, lisa, turns_of

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


def applied(folder: Path, method: Method) -> Model:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method)
    return model


def batch(*lengths: int, samples: tuple[int, ...] | None = None) -> Batch:
    groups = [
        Group((Tokens(np.arange(5, 5 + n, dtype=np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32)),))
        for n in lengths
    ]
    return collate(groups, samples or range(len(groups)))


def test_layers_are_unfrozen_from_the_top() -> None:
    moving = gradual(4, 100, Gradual(layers_at_once=2, unfreeze_every=3))
    assert [moving(step) for step in (0, 2, 3, 99)] == [{2, 3}, {2, 3}, {-1, 0, 1, 2, 3}, {-1, 0, 1, 2, 3}]
    unpaced = gradual(4, 80, Gradual())
    assert [min(unpaced(step)) for step in (0, 9, 10, 20, 29, 30, 79)] == [3, 3, 2, 1, 1, EMBEDDING, EMBEDDING]


def test_layers_are_drawn_anew_and_the_same_again() -> None:
    moving = lisa(12, Lisa(active_layers=3, interval=5), seed=7)
    drawn = [moving(step) for step in range(0, 200, 5)]
    assert all(len(layers) == 4 and EMBEDDING in layers for layers in drawn)
    assert len(set(drawn)) > 30 and set().union(*drawn) == set(range(-1, 12))
    assert moving(5) == moving(9) == lisa(12, Lisa(active_layers=3, interval=5), seed=7)(7) != moving(4)
    assert [lisa(12, Lisa(), seed=8)(step) for step in range(0, 99, 20)] != [moving(step) for step in range(0, 99, 20)]
    with pytest.raises(ConfigError, match="2 layers"):
        lisa(2, Lisa(active_layers=3), seed=0)


def test_layers_at_rest_have_no_gradient_and_come_back(tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir("gemma3"), Lisa(active_layers=2, interval=1))
    turns = turns_of(model, Lisa(active_layers=2, interval=1), total=10, seed=0)
    model.train_mode()
    everything = set(model.trained())
    for step in range(4):
        assert turns.before(step) == (lisa(7, Lisa(active_layers=2, interval=1), 0)(step) != drawn_before(step))
        model.logprobs(batch(9))[0].sum().backward()
        with_gradient = {methods.layer_of(name) for name, weight in model.trained().items() if weight.grad is not None}
        assert with_gradient - {None} == lisa(7, Lisa(active_layers=2, interval=1), 0)(step) - {EMBEDDING}
        assert None in with_gradient, "embedding, head and last norm always move"
        assert set(model.trained()) == everything, "all of them are saved"
    fresh = turns_of(model, Lisa(active_layers=2, interval=1), total=10, seed=0)
    moving = {name for name, weight in model.trained().items() if weight.requires_grad}
    fresh.before(3)
    assert moving == {name for name, weight in model.trained().items() if weight.requires_grad}


def drawn_before(step: int) -> frozenset[int] | None:
    return lisa(7, Lisa(active_layers=2, interval=1), 0)(step - 1) if step else None


def three_steps(model: Any, ranks: Callable[[int], None], steps: range, gradient: Callable[[], None]) -> None:
    moving = [weight for weight in model.parameters() if weight.requires_grad]
    for step in steps:
        gradient()
        with torch.no_grad():
            for weight in moving:
                weight -= 0.05 * weight.grad
        ranks(step)
        for weight in moving:
            weight.grad = None


def test_ranks_go_as_in_plain_peft_and_can_be_taken_up_again(tiny_model_dir: Callable[..., Path]) -> None:
    method = AdaLora(initial_rank=6, target_rank=2, settle_steps=1, final_steps=2)
    packed = batch(7, 9)
    model = applied(tiny_model_dir(), method)
    ranks = Ranks(model, method, total=8)
    start = {name: weight.detach().clone() for name, weight in model.trained().items()}

    def ours(model: Model = model) -> None:
        (-model.logprobs(packed)[0].sum()).backward()

    three_steps(model.network, ranks.after, range(4), ours)
    half = {name: weight.detach().clone() for name, weight in model.trained().items()}
    remembered = {name: value.clone() for name, value in ranks.state().items()}
    three_steps(model.network, ranks.after, range(4, 8), ours)

    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    plain: Any = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir()),
        peft.AdaLoraConfig(
            task_type="CAUSAL_LM", init_r=6, target_r=2, tinit=1, tfinal=2, total_step=8, lora_alpha=32,
            target_modules=linear,
        ),
    )  # fmt: skip
    theirs = dict(plain.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            theirs[name].copy_(value)

    def plains() -> None:
        for ids in packed.ids_T.split(packed.lengths):
            scores = plain(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            (-scores.gather(1, ids[1:, None]).sum()).backward()

    three_steps(plain, lambda step: plain.base_model.update_and_allocate(step + 1), range(8), plains)
    for name, weight in model.trained().items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=1e-4)
    left = [int((weight != 0).sum()) for name, weight in model.trained().items() if "lora_E" in name]
    assert sum(left) == 2 * len(left) and len(set(left)) > 1, "the budget is shared by importance"

    again = applied(tiny_model_dir(), method)
    resumed = Ranks(again, method, total=8)
    with torch.no_grad():
        for name, weight in again.trained().items():
            weight.copy_(half[name])
    resumed.load(remembered)
    three_steps(again.network, resumed.after, range(4, 8), lambda: ours(again))
    assert all(torch.equal(weight, model.trained()[name]) for name, weight in again.trained().items())


def test_the_right_angles_of_ranks_are_pefts(tiny_model_dir: Callable[..., Path]) -> None:
    method = AdaLora(initial_rank=6, target_rank=2)
    model = applied(tiny_model_dir(), method)
    penalty = Ranks(model, method, total=20).penalty()
    ids = torch.arange(5, 12)[None]
    network: Any = model.network
    network.peft_config["default"].orth_reg_weight = 0.0
    without = network(input_ids=ids, labels=ids).loss
    network.peft_config["default"].orth_reg_weight = 0.5
    torch.testing.assert_close(network(input_ids=ids, labels=ids).loss - without, penalty)


def test_a_run_too_short_for_ranks_is_refused(tiny_model_dir: Callable[..., Path]) -> None:
    method = AdaLora(settle_steps=5, final_steps=5)
    with pytest.raises(ConfigError, match="10 steps"):
        turns_of(applied(tiny_model_dir(), method), method, total=10, seed=0)
    # In a single step importance would be asked for before it is measured.
    with pytest.raises(ConfigError, match="a run of 1 steps"):
        turns_of(applied(tiny_model_dir(), AdaLora()), AdaLora(), total=1, seed=0)
    turns_of(applied(tiny_model_dir(), AdaLora()), AdaLora(), total=2, seed=0)


@pytest.mark.parametrize("method", [Full(), Lora(rank=2), Prompt(virtual_tokens=3)])
def test_noise_depends_on_seed_step_and_sample_alone(method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir(), method)
    plain = model.hidden(batch(5, 9))
    noise = Noise(model, alpha=5.0, seed=3)
    assert torch.equal(model.hidden(batch(5, 9)), plain), "none in evaluation"
    model.train_mode()
    noisy = model.hidden(batch(5, 9, samples=(0, 1)))
    assert not torch.allclose(noisy, plain)
    assert torch.equal(model.hidden(batch(5, 9, samples=(0, 1))), noisy), "the same again"
    alone = model.hidden(batch(9, samples=(1,)))
    torch.testing.assert_close(alone, noisy[5:], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model.hidden(batch(9, samples=(2,))), alone, atol=1e-3)
    noise.step = 1
    assert not torch.allclose(model.hidden(batch(9, samples=(1,))), alone, atol=1e-3)


def test_noise_is_as_large_as_the_paper_says(tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir(), Full())
    noise = Noise(model, alpha=5.0, seed=0)
    drawn = noise._of(0, 0, 100)  # pyright: ignore[reportPrivateUsage]
    bound = 5.0 / (100 * 32) ** 0.5
    assert drawn.abs().max() <= bound and drawn.abs().max() > 0.99 * bound
    assert abs(float(drawn.mean())) < bound / 20
    assert isinstance(ModelTurns(model, None, None).before(3), bool) and noise.step == 3
