from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.base.errors import MissingExtra, ModelError
from luthier.model.config import ModelConfig
from luthier.model.load import Model, arithmetic_dtype, context_length, load_model, load_tokenizer


def load(folder: Path | str, **settings: Any) -> Model:
    config = ModelConfig.model_validate({"path": str(folder), **settings})
    return load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)


@pytest.fixture
def folder(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """A model folder that a test may break."""
    return Path(shutil.copytree(tiny_model_dir("qwen2-untied"), tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path | str, **settings: Any) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load(folder, **settings)
    return caught.value


def test_weights_are_held_in_the_asked_type(folder: Path) -> None:
    assert {w.dtype for w in load(folder, dtype="bfloat16").network.parameters()} == {torch.bfloat16}
    model = load(folder)
    assert model.dtype == arithmetic_dtype("auto", torch.device("cpu")) == torch.float32
    assert not model.trained() and model.max_length == 128 == context_length(model.config, model.tokenizer)


@pytest.mark.parametrize("shape", ["cohere", "granite", "gemma2", "qwen2", "gpt2"])
def test_logits_are_the_whole_models(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    model = load(tiny_model_dir(shape))
    ids = torch.tensor([[5, 80, 33, 7]])
    with torch.no_grad():
        hidden = model.base.get_decoder()(input_ids=ids, use_cache=False)[0][0]
        torch.testing.assert_close(model.logits(hidden), model.network(input_ids=ids).logits[0])


def test_logits_of_an_unknown_kind_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import Qwen2ForCausalLM

    forward = Qwen2ForCausalLM.forward

    def odd(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits = output.logits.square()
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", odd)
    assert refused(folder).code == "unknown_head"


def test_missing_folder_names_its_neighbours(folder: Path) -> None:
    error = refused(folder.parent / "modle")
    assert error.code == "no_model" and "Did you mean model?" in str(error)
    assert "does not exist either" in str(refused(folder.parent / "gone" / "model"))
    assert "folder it lies in" in str(refused(folder / "config.json"))


def test_pickled_weights_are_never_opened(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return canary.write_text, ("boom",)

    torch.save(Bomb(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    error = refused(folder)
    assert error.code == "pickle_weights" and "pytorch_model.bin" in str(error)
    assert not canary.exists()


def test_remote_code_is_refused_unless_named(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    (folder / "own.py").write_text(f"open({str(canary)!r}, 'w').write('boom')\n")
    edit(folder / "config.json", model_type="homemade", auto_map={"AutoConfig": "own.Config"})
    config = ModelConfig(path=str(folder))
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with pytest.raises(ModelError, match="--trust_remote_code") as caught:
        load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    assert caught.value.code == "remote_code" and not canary.exists()


@pytest.mark.parametrize("damage", ["cut", "header", "gone", "outside"])
def test_damaged_weights_are_named(damage: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "header":
        weights.write_bytes(b"\xff" * 4096)
    else:
        shard = "../model.safetensors" if damage == "outside" else "model-00001-of-00001.safetensors"
        weights.unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": shard}}))
    error = refused(folder)
    assert error.code == "broken_weights" and str(folder) in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), "1 weights are missing: lm_head.weight"),
        (lambda w: w.update({"v_head.weight": torch.zeros(3)}), "1 weights are not known to the model: v_head.weight"),
        (lambda w: w.update({"lm_head.weight": torch.zeros(400, 31)}), "1 weights are of another shape"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_no_weight_is_ever_random(change: Callable[[dict[str, Any]], Any], message: str, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    error = refused(folder)
    assert error.code == "wrong_weights" and message in str(error)


def test_configs_that_are_no_language_model(folder: Path) -> None:
    edit(folder / "config.json", architectures=["Qwen2ForSequenceClassification"])
    assert refused(folder).code == "wrong_architecture"
    edit(folder / "config.json", architectures=None, model_type="clip")
    assert refused(folder).code == "wrong_architecture"


def test_broken_config_files(folder: Path) -> None:
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    for text, message in [("{", "cannot be read"), ("[]", "not a JSON object"), ('{"model_type": "novel"}', "'novel'")]:
        (folder / "config.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="--adapters"):
        load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)


def test_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert refused(folder).code == "no_tokenizer"


def test_a_run_in_place_of_a_model_is_told_its_checkpoint(tmp_path: Path) -> None:
    made = tmp_path / "checkpoints" / "step-00000007"
    made.mkdir(parents=True)
    (tmp_path / "checkpoints" / "LATEST").write_text(f"{made.name}\n")
    assert str(made) in str(refused(tmp_path))


def test_tokenizer_larger_than_the_embedding(folder: Path) -> None:
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    tokenizer.add_tokens(["制琴师的新词"])
    with pytest.raises(ModelError, match="401 tokens, the model's embedding 400"):
        load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=False)


def test_hub_ids(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: list[dict[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        asked.append({"repository": repository, **options})
        if repository == "owner/gone":
            raise LocalEntryNotFoundError("Got: ConnectError")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("owner/model", revision="v2").config.path == "owner/model"
    assert asked[0]["repository"] == "owner/model" and asked[0]["revision"] == "v2"
    assert not any(pattern in ("*", "*.bin", "*.py") for pattern in asked[0]["allow_patterns"])
    error = refused("owner/gone")
    assert error.code == "hub_unreachable" and "give its folder" in str(error)
    with pytest.raises(MissingExtra, match=r"luthier\[hub\]"):
        load("owner/model", hub="ms")
