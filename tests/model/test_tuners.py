"""Every method of PEFT's trains as plain PEFT does, and what it saves answers as what was trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from encoders import save_encoder
from torch import Tensor
from transformers import AutoModelForCausalLM

from luthier.base.errors import ConfigError, ModelError
from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.model import methods, prompts
from luthier.model.config import Method, ModelConfig
from luthier.model.heads import Head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.method import AdaLora, BitFit, Boft, Ia3, LnTuning, Lora, Oft, Prefix, Prompt, PTuning, Vera

# PEFT uses names that newer transformers deprecate, and has opinions of its own settings.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor:UserWarning"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
]
TOLERANCE = 1e-5
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm", "norm"]
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
VIRTUAL: dict[str, Any] = {**CAUSAL, "num_virtual_tokens": 4}
CASES: dict[str, tuple[Method, Callable[[], Any]]] = {
    "lora": (Lora(rank=4), lambda: peft.LoraConfig(**CAUSAL, r=4, lora_alpha=32, target_modules=LINEAR)),
    "dora": (
        Lora(rank=4, dora=True),
        lambda: peft.LoraConfig(**CAUSAL, r=4, lora_alpha=32, target_modules=LINEAR, use_dora=True),
    ),
    "adalora": (
        AdaLora(initial_rank=6, target_rank=3),
        lambda: peft.AdaLoraConfig(**CAUSAL, init_r=6, target_r=3, lora_alpha=32, target_modules=LINEAR, total_step=9),
    ),
    "vera": (Vera(rank=8), lambda: peft.VeraConfig(**CAUSAL, r=8, target_modules=LINEAR)),
    "ia3": (Ia3(), lambda: peft.IA3Config(**CAUSAL)),
    "ia3-named": (
        Ia3(target=("k_proj", "down_proj"), feedforward=("down_proj",)),
        lambda: peft.IA3Config(**CAUSAL, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ),
    "oft": (Oft(block_size=8), lambda: peft.OFTConfig(**CAUSAL, oft_block_size=8, target_modules=LINEAR)),
    "boft": (Boft(), lambda: peft.BOFTConfig(**CAUSAL, boft_block_size=4, target_modules=LINEAR)),
    "ln_tuning": (LnTuning(), lambda: peft.LNTuningConfig(**CAUSAL, target_modules=NORMS)),
    "prompt": (Prompt(virtual_tokens=4), lambda: peft.PromptTuningConfig(**VIRTUAL)),
    "prefix": (Prefix(virtual_tokens=4), lambda: peft.PrefixTuningConfig(**VIRTUAL)),
    "prefix-projection": (
        Prefix(virtual_tokens=4, projection=True, hidden_size=16),
        lambda: peft.PrefixTuningConfig(**VIRTUAL, prefix_projection=True, encoder_hidden_size=16),
    ),
    "ptuning": (
        PTuning(virtual_tokens=4, hidden_size=16),
        lambda: peft.PromptEncoderConfig(**VIRTUAL, encoder_hidden_size=16),
    ),
    "ptuning-lstm": (
        PTuning(virtual_tokens=4, encoder="lstm"),
        lambda: peft.PromptEncoderConfig(
            **VIRTUAL, encoder_hidden_size=32, encoder_reparameterization_type="LSTM", encoder_num_layers=2
        ),
    ),
}
MERGING = [name for name, (method, _) in CASES.items() if method.supports.merging]


def applied(folder: Path, method: Method, adapters: tuple[str, ...] = (), **settings: Any) -> Model:
    config = ModelConfig.model_validate({"path": str(folder), **settings})
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(0)
    methods.apply(model, method, adapters)
    return model


def stirred(model: Model) -> Model:
    """Every number that moves has moved a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.trained().values():
            weight += 0.05 * torch.randn_like(weight)
    return model


def batch() -> Batch:
    rng = np.random.default_rng(0)
    groups = [
        Group((Tokens(rng.integers(3, 300, n).astype(np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32)),))
        for n in (7, 5, 9)
    ]
    return collate(groups, [0, 1, 2])


def logprobs(model: Model) -> Tensor:
    return model.logprobs(batch())[0]


def plain_logprobs(network: Any) -> Tensor:
    """The same numbers from transformers alone, sequence by sequence."""
    found: list[Tensor] = []
    packed = batch()
    for ids in packed.ids_T.split(packed.lengths):
        # What stands before the text has no logits of its own in prefix tuning, and some in the others.
        scores = network(input_ids=ids[None]).logits[0, -len(ids) :].log_softmax(-1)
        found += [scores[:-1].gather(1, ids[1:, None])[:, 0], torch.zeros(1)]
    return torch.cat(found)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_plain_pefts(name: str, tiny_model_dir: Callable[..., Path]) -> None:
    method, settings = CASES[name]
    model = stirred(applied(tiny_model_dir(), method))
    plain = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir()), settings())
    theirs = {key: weight for key, weight in plain.named_parameters() if weight.requires_grad}
    assert theirs.keys() == model.trained().keys()
    with torch.no_grad():
        for key, weight in model.trained().items():
            theirs[key].copy_(weight)
    ours, plains = logprobs(model), plain_logprobs(plain)
    torch.testing.assert_close(ours, plains, atol=TOLERANCE, rtol=TOLERANCE)
    ours.sum().backward()
    plains.sum().backward()
    for key, weight in model.trained().items():
        assert weight.grad is not None and weight.grad.any(), key
        torch.testing.assert_close(weight.grad, theirs[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_artefact_answers_as_what_was_trained(
    name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    model = stirred(applied(tiny_model_dir(), CASES[name][0]))
    live = logprobs(model).detach()
    methods.save(model, tmp_path)
    plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir()), str(tmp_path))
    plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(plain), live, atol=TOLERANCE, rtol=TOLERANCE)
    config = ModelConfig(path=str(tiny_model_dir()))
    again = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)
    methods.attach(again, [str(tmp_path)])
    assert torch.equal(logprobs(again), live)


@pytest.mark.parametrize("name", MERGING)
def test_merged_it_answers_the_same(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = stirred(applied(tiny_model_dir(), CASES[name][0]))
    live = logprobs(model).detach()
    methods.merge(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(plain_logprobs(plain), live, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["prompt", "prefix", "ptuning"])
def test_what_stands_before_the_text_is_not_merged(
    name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="cannot become part of the weights"):
        methods.merge(applied(tiny_model_dir(), CASES[name][0]), tmp_path)


@pytest.mark.parametrize("name", ["vera", "ia3", "oft", "boft", "ln_tuning", "prompt", "prefix"])
def test_an_earlier_adapter_is_trained_further(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    method = CASES[name][0]
    model = stirred(applied(tiny_model_dir(), method))
    methods.save(model, tmp_path)
    further = applied(tiny_model_dir(), method, (str(tmp_path),))
    assert torch.equal(logprobs(further), logprobs(model))
    assert further.trained().keys() == model.trained().keys()


def test_an_adapter_of_another_kind_is_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    methods.save(applied(tiny_model_dir(), Ia3()), tmp_path)
    with pytest.raises(ConfigError, match=r"type .*IA3.* in the adapter, .*VERA.* asked for"):
        applied(tiny_model_dir(), Vera(rank=8), (str(tmp_path),))


@pytest.mark.parametrize("name", [name for name, (method, _) in CASES.items() if method.supports.few_bits])
def test_over_a_base_in_four_bits(name: str, tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("hqq")
    quant: dict[str, Any] = {"quant": {"method": "hqq", "bits": 4, "group_size": 8}}
    model = stirred(applied(tiny_model_dir(), CASES[name][0], **quant))
    live = logprobs(model)
    live.sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.trained().values())
    methods.save(model, tmp_path)
    config = ModelConfig.model_validate({"path": str(tiny_model_dir()), **quant})
    again = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)
    methods.attach(again, [str(tmp_path)])
    torch.testing.assert_close(logprobs(again), live, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_prompt_starts_as_the_tokens_of_a_text(tiny_model_dir: Callable[..., Path]) -> None:
    model = applied(tiny_model_dir(), Prompt(virtual_tokens=4, text="spruce"))
    ids = model.tokenizer("spruce")["input_ids"]
    network: Any = model.network
    embedding: Any = model.base.get_input_embeddings()
    wanted = embedding.weight[(ids * 4)[:4]]
    assert torch.equal(network.prompt_encoder["default"].embedding.weight, wanted)


@pytest.mark.parametrize("method", [Prompt(virtual_tokens=4), Prefix(virtual_tokens=4)])
def test_virtual_tokens_that_start_as_real_ones_do_what_those_do(
    method: Method, tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = torch.tensor([9, 30, 200, 7])
    monkeypatch.setattr(prompts, "_first_tokens", lambda *_: first)
    ours = logprobs(applied(tiny_model_dir(), method))[:6]
    ids = batch().ids_T[:7]
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir())(input_ids=torch.cat([first, ids])[None]).logits
    wanted = plain[0, 4:].log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(ours, wanted, atol=TOLERANCE, rtol=TOLERANCE)


def test_bitfit_moves_biases_only(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    model = stirred(applied(tiny_model_dir(), BitFit()))
    assert model.trained().keys() == {
        f"model.layers.{layer}.self_attn.{part}_proj.bias" for layer in (0, 1) for part in "qkv"
    }
    live = logprobs(model).detach()
    methods.save(model, tmp_path)
    with torch.no_grad():
        plain = plain_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path))
    torch.testing.assert_close(plain, live, atol=TOLERANCE, rtol=TOLERANCE)
    with pytest.raises(ConfigError, match="no biases"):
        applied(tiny_model_dir("llama"), BitFit())


def test_ia3_on_an_unknown_architecture_asks_for_layers(tiny_model_dir: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="which layers of a granite"):
        applied(tiny_model_dir("granite"), Ia3())


@pytest.mark.parametrize("shape", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("method", [Lora(), AdaLora(), Vera(), Oft(block_size=8), Boft()], ids=lambda one: one.type)
def test_heads_that_are_learned_whole_get_no_adapters(method: Method, shape: str, tmp_path: Path) -> None:
    config = ModelConfig(path=str(save_encoder(tmp_path, shape)))
    head = Head("sequence", ("a", "b"), "single_label_classification")
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True, head=head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        methods.apply(model, method)
    learned = {name for name in model.trained() if "classifier" in name or "pooler" in name}
    adapters = set(model.trained()) - learned
    assert learned and all(name.endswith(("weight", "bias")) for name in learned)
    assert not any(part in name for name in learned for part in ("lora_", "oft_", "boft_", "vera_"))
    assert {name.split("layer.")[1][0] for name in adapters if "layer." in name} == {"0", "1"}


def test_what_peft_would_do_otherwise_is_refused(
    tiny_model_dir: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT takes another block size, and without its CUDA extension one factor, and goes on."""
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    for method, what in (
        (Oft(block_size=7), "32 inputs, no multiple of 7"),
        (Boft(factors=2), "several butterfly factors"),
        (Ia3(feedforward=("nope",)), "'nope' is none of the layers that are scaled"),
    ):
        with warnings.catch_warnings(), pytest.raises(ConfigError, match=what):
            warnings.simplefilter("ignore")
            applied(tiny_model_dir(), method)


def test_methods_say_what_they_cannot() -> None:
    assert not any(method.supports.packing for method in (Prompt(), Prefix(), PTuning()))
    assert not Prefix().supports.checkpointing and not Boft().supports.few_bits
    with pytest.raises(ValueError, match="target_rank must be below"):
        AdaLora(target_rank=8, initial_rank=8)
    with pytest.raises(ValueError, match="needs a text"):
        Prompt(start="text")
    assert Prompt(text="a").start == "text"
