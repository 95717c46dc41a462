"""The stepped decoder against transformers' own modules, on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.model import methods
from luthier.model.attention import step_inputs
from luthier.model.config import Lora, ModelConfig
from luthier.model.lanes import Lanes, Part, Step
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.stepping import Stepper


def loaded(folder: Path, dtype: str) -> Model:
    config = ModelConfig(path=str(folder), dtype=dtype)
    return load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)


def steps(lanes: Lanes) -> list[tuple[torch.Tensor, Step]]:
    """A prompt alone, two prompts in pieces beside a running answer, and answers alone and together."""
    draw = torch.Generator().manual_seed(0)
    rows: list[tuple[list[Part], list[Part]]] = [
        ([], [Part(0, 0, 9)]),
        ([Part(0, 9, 1)], [Part(1, 0, 7), Part(2, 0, 20)]),
        ([Part(0, 10, 1)], [Part(1, 7, 5)]),
        ([Part(0, 11, 1)], []),
        ([Part(1, 12, 1)], []),
        ([Part(0, 12, 1), Part(1, 13, 1), Part(2, 20, 1)], []),
        ([Part(0, 13, 1), Part(2, 21, 1)], []),
    ]
    return [
        (
            torch.randint(0, 100, (sum(part.length for part in (*continued, *prompts)),), generator=draw),
            Step(lanes, continued, prompts),
        )
        for continued, prompts in rows
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["qwen2", "qwen3", "llama", "mistral"])
def test_hidden_states_are_those_of_transformers(shape: str, dtype: str, tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir(shape), dtype)
    decoder: Any = model.base.get_decoder()
    found: list[list[torch.Tensor]] = []
    with torch.inference_mode():
        for way in ("modules", "steps", "modules again"):  # the modules hold views of the joined weights by then
            lanes = Lanes(model.device, model.dtype)
            lanes.resize(3, 32)
            if way == "steps":
                assert Stepper.suits(decoder, model.dtype)
                stepper = Stepper(decoder)
                found.append([stepper(ids_T, step) for ids_T, step in steps(lanes)])
                continue
            with model.arithmetic():
                found.append([decoder(**step_inputs(ids_T, step))[0][0] for ids_T, step in steps(lanes)])
    for before, stepped, after in zip(*found, strict=True):
        assert stepped.dtype == before.dtype and torch.equal(before, after)
        assert torch.allclose(stepped, before, rtol=0, atol=2e-5 if dtype == "float32" else 0.1)
        assert torch.nn.functional.cosine_similarity(stepped.float(), before.float()).min() > 0.9999


def test_weights_are_held_once(tiny_model_dir: Callable[..., Path]) -> None:
    decoder: Any = loaded(tiny_model_dir("qwen2"), "float32").base.get_decoder()
    Stepper(decoder)
    attention = decoder.layers[0].self_attn
    places = {
        part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    assert len(places) == 1


def test_what_is_not_as_it_came_is_left_to_transformers(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"), "float32")
    decoder: Any = model.base.get_decoder()
    assert not Stepper.suits(decoder, torch.bfloat16)
    methods.apply(model, Lora(rank=2))
    assert not Stepper.suits(model.base.get_decoder(), torch.float32)
    other: Any = loaded(tiny_model_dir("phi3"), "float32").base.get_decoder()
    assert not Stepper.suits(other, torch.float32)
    training: Any = loaded(tiny_model_dir("llama"), "float32").base.get_decoder()
    training.layers[0].mlp.up_proj.weight.requires_grad_(True)
    assert not Stepper.suits(training, torch.float32)
