from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.base.errors import ConfigError, ModelError
from luthier.model import methods
from luthier.model.config import Freeze, Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer


def applied(folder: Path, method: Method, adapters: tuple[str, ...] = (), dtype: str = "float32") -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "dtype": dtype})
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, method, adapters)
    return model


def layers_trained(model: Model) -> set[int | None]:
    return {methods.layer_of(name) for name in model.trained()}


def test_full_trains_everything_once(tiny_model_dir: Callable[..., Path]) -> None:
    tied, untied = applied(tiny_model_dir("qwen2"), Full()), applied(tiny_model_dir("qwen2-untied"), Full())
    assert tied.trained().keys() == dict(tied.network.named_parameters()).keys()
    assert "lm_head.weight" in untied.trained() and "lm_head.weight" not in tied.trained()


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (Freeze(first_layers=2), {0, 1}),
        (Freeze(last_layers=1), {6}),
        (Freeze(first_layers=1, last_layers=1), {0, 6}),
        (Freeze(ratio=0.3), {4, 5, 6}),
        (Freeze(pattern=r"layers\.3\.mlp"), {3}),
        (Freeze(pattern="embed_tokens"), {None}),
        (Freeze(last_layers=99), set(range(7))),
    ],
)
def test_freeze_chooses_layers(method: Freeze, layers: set[int | None], tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir("gemma3"), method)
    assert methods.num_layers(model) == 7
    assert layers_trained(model) == layers


def test_freeze_that_matches_nothing_is_refused(tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="no_such_part"):
        applied(tiny_model_dir(), Freeze(pattern="no_such_part"))


@pytest.mark.parametrize("method", [Full(), Freeze(last_layers=1), Lora(rank=2, modules_to_save=("lm_head",))])
def test_what_moves_is_float32_and_what_does_not_is_narrow(method: Method, tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir("qwen2-untied"), method, dtype="bfloat16")
    for weight in model.network.parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16)
    assert model.hidden(_batch()).dtype in (torch.bfloat16, torch.float32)
    model.logprobs(_batch())[0].sum().backward()
    assert all(w.grad is not None and w.grad.any() for n, w in model.trained().items() if "lora_A" not in n)


def _batch():  # type: ignore[no-untyped-def]
    import numpy as np

    from luthier.data.batch import Group, Tokens, collate

    return collate([Group((Tokens(np.arange(5, 15, dtype=np.int32), np.array([0] + [1] * 9, np.float32)),))], [0])


def test_all_linear_leaves_the_head_alone(tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir("qwen2-untied"), Lora(rank=2))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in model.trained()}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    b_names = [name for name in model.trained() if methods.is_lora_b(name)]
    assert len(b_names) == len(model.trained()) / 2
    assert all(not model.trained()[name].any() for name in b_names)


def test_targets_by_list_and_by_regex(tiny_model_dir: Callable[..., Path]) -> None:
    by_list = applied(tiny_model_dir(), Lora(rank=2, target=("q_proj", "v_proj")))
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in by_list.trained()} == {"q_proj", "v_proj"}
    by_regex = applied(tiny_model_dir(), Lora(rank=2, target=r".*layers\.1\.mlp\..*_proj"))
    assert layers_trained(by_regex) == {1}
    with pytest.raises(ModelError, match=r"no_proj.*q_proj"):
        applied(tiny_model_dir(), Lora(rank=2, target=("no_proj",)))
    with pytest.raises(ConfigError, match=r"--target_modules: no layer of this model is called v_projj\. .*q_proj"):
        applied(tiny_model_dir(), Lora(rank=2, target=("q_proj", "v_projj")))


def test_a_rank_beyond_every_layer_is_refused_before_it_is_made(tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"--lora_rank: rank 1000000000 is more than the \d+ that the widest"):
        applied(tiny_model_dir(), Lora(rank=10**9))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starting_inside_the_weight(init: str, tiny_model_dir: Callable[..., Path]) -> None:
    method = Lora.model_validate({"rank": 4, "alpha": 2.0, "init": init})
    model = applied(tiny_model_dir(), method)
    named = dict(model.network.named_parameters())
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = (named[f"{name}.lora_{part}.default.weight"] for part in "AB")
    weight = named[f"{name}.base_layer.weight"]
    product = method.alpha / method.rank * b @ a
    if init == "pissa":
        u, s, vh = torch.linalg.svd(weight)
        torch.testing.assert_close(product, u[:, :4] * s[:4] @ vh[:4], rtol=1e-4, atol=1e-5)
    else:
        q, r = torch.linalg.qr(weight)
        torch.testing.assert_close(product, method.alpha / method.rank * q[:, :4] @ r[:4], rtol=1e-4, atol=1e-5)
    assert not any(".start." in trained for trained in model.trained())
    with pytest.raises(ConfigError, match="DoRA"):
        applied(tiny_model_dir(), method.model_copy(update={"dora": True}))


@pytest.mark.parametrize(
    ("asked", "difference"),
    [
        (Lora(rank=8, alpha=8), "rank 4 in the adapter, 8 asked for"),
        (Lora(rank=4, alpha=16), "alpha 8.0 in the adapter, 16.0 asked for"),
        (Lora(rank=4, alpha=8, rslora=True), "rslora False in the adapter, True asked for"),
        (Lora(rank=4, alpha=8, init="pissa"), "init from the weight False in the adapter"),
        (Lora(rank=4, alpha=8, target=("q_proj",)), "does not fit"),
    ],
)
def test_continuing_with_other_settings_is_refused(
    asked: Lora, difference: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    methods.save(applied(tiny_model_dir(), Lora(rank=4, alpha=8)), tmp_path)
    with pytest.raises(ConfigError) as caught:
        applied(tiny_model_dir(), asked, (str(tmp_path),))
    assert difference in str(caught.value)


def test_adapter_of_another_model_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    methods.save(applied(tiny_model_dir("gemma3"), Lora(rank=4)), tmp_path)
    with pytest.raises(ConfigError, match="does not fit"):
        applied(tiny_model_dir("qwen2"), Lora(rank=4), (str(tmp_path),))


def test_not_an_adapter_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir()
    with pytest.raises(ModelError, match="a whole model"):
        applied(base, Lora(), (str(base),))
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError) as caught:
        applied(base, Lora(), (str(tmp_path),))
    assert caught.value.code == "pickle_weights"


def test_layer_names() -> None:
    assert methods.layer_of("model.layers.12.self_attn.q_proj.weight") == 12
    assert methods.layer_of("base_model.model.transformer.h.3.mlp.c_fc.lora_A.default.weight") == 3
    assert methods.layer_of("model.embed_tokens.weight") is None
    assert methods.layer_of("lm_head.weight") is None


def test_scaling_of_saved_halves(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    import json

    methods.save(applied(tiny_model_dir(), Lora(rank=4, alpha=8, init="pissa", rslora=True)), tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["r"] == 8 and math.isclose(settings["lora_alpha"] / math.sqrt(8), 8 / math.sqrt(4))
    assert settings["base_model_name_or_path"] == str(tiny_model_dir().resolve())
