"""`luthier export` from the command line's settings: what lies there afterwards, and what never does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_artefacts import difference, live_logits, opened, plain_logits, plain_model, trained

from luthier.base.console import Console
from luthier.base.errors import ConfigError, ModelError, RunError
from luthier.base.sealed import verify
from luthier.cli.flags import parse
from luthier.export import hub as hubs
from luthier.export.config import ExportConfig
from luthier.model import methods
from luthier.model.config import Lora, ModelConfig, Quant
from luthier.model.load import load_model, load_tokenizer
from luthier.run.config import RunConfig
from luthier.run.export import export

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]
SECRET = "hf_" + "a1" * 17


@pytest.fixture
def adapter(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> Path:
    """The checkpoint of a run, as far as an export looks at one."""
    from luthier.base.config import to_yaml

    base = tiny_model_dir("qwen2", initializer_range=0.1)
    folder = tmp_path / "violin" / "v1-20260101-120000" / "checkpoints" / "step-00000003"
    methods.save(trained(opened(base, Lora(rank=2))), folder)
    config = RunConfig(
        model=ModelConfig(path=str(base)),
        data={"datasets": ("/home/somebody/rows.jsonl#9",), "system": "Be kind."},  # pyright: ignore[reportArgumentType]
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def made(adapter: Path, *flags: str) -> Path:
    tree = parse(["--adapters", str(adapter), *flags], ExportConfig).tree
    return export(ExportConfig.model_validate(tree), Console(quiet=True))


def test_merged_folder_answers_as_the_adapter(adapter: Path, tiny_model_dir: Callable[..., Path]) -> None:
    folder = made(adapter, "--merge_lora", "true")
    assert folder == adapter.parents[1] / "exports" / "step-00000003-merged"
    assert verify(folder) is None
    config = ModelConfig(path=str(tiny_model_dir("qwen2", initializer_range=0.1)), adapters=(str(adapter),))
    live = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)
    methods.attach(live, config.adapters)
    assert difference(live_logits(live), plain_logits(plain_model(folder))) < 1e-5
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert 2 in ends, "what ends an answer in the template ends it in plain transformers and vLLM too"
    assert not list(folder.parent.glob(".*")), "nothing is left of the work"


@pytest.mark.parametrize(
    "flags", [("--merge_lora", "true"), ("--quant_method", "hqq", "--quant_bits", "8"), ("--to_gguf", "true")]
)
def test_the_licence_of_the_base_goes_with_its_weights(flags: tuple[str, ...], adapter: Path, tmp_path: Path) -> None:
    if "hqq" in flags:
        pytest.importorskip("hqq")
    if "--to_gguf" in flags:
        pytest.importorskip("gguf")
    base = Path(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])
    licensed = shutil.copytree(base, tmp_path / "licensed")
    (licensed / "LICENSE").write_text("Share alike.")
    folder = made(adapter, "--model", str(licensed), *flags)
    assert (folder / "LICENSE").read_text() == "Share alike."
    assert verify(folder) is None


def test_nothing_is_written_over(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is written over"):
        made(adapter, "--merge_lora", "true", "--output_dir", str(tmp_path / "there"))
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]


def test_failure_leaves_nothing(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import luthier.export.merge as room

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "write_tensors", full)
    with pytest.raises(RunError, match="the disk is full"):
        made(adapter, "--merge_lora", "true")
    assert not list((adapter.parents[1] / "exports").iterdir())


def test_rounded_export_tells_size_and_perplexity(adapter: Path) -> None:
    pytest.importorskip("hqq")
    folder = made(adapter, "--quant_method", "hqq", "--quantization_bit", "8", "--quant_group", "32", "--rows", "6")
    facts = json.loads((folder / "export.json").read_text())
    assert facts["measured_rows"] == 6 and facts["measured_on"] == "the bundled conversations"
    assert facts["perplexity_after"] == pytest.approx(facts["perplexity_before"], rel=0.02)
    assert facts["bytes_after"] < facts["bytes_before"]
    assert "perplexity" in (folder / "README.md").read_text()


def test_perplexity_is_that_of_plain_transformers(adapter: Path, chats: Path, tmp_path: Path) -> None:
    """exp of the mean cross-entropy over the answers' tokens, computed by transformers on the merged model."""
    pytest.importorskip("hqq")
    from luthier.data.render import Renderer
    from luthier.objectives.config import Sft
    from luthier.objectives.language import Language
    from luthier.run.rows import rows_of

    folder = made(adapter, "--quant_method", "hqq", "--dataset", str(chats), "--rows", "5", "--quant_group", "32")
    before = json.loads((folder / "export.json").read_text())["perplexity_before"]
    plain = plain_model(made(adapter, "--merge_lora", "true"))
    from luthier.run.rows import run_config

    renderer = Renderer(load_tokenizer(ModelConfig(path=str(adapter))))
    objective = Language(Sft(), renderer)
    nats, count = 0.0, 0
    for record in rows_of([str(chats)], run_config(adapter), 5)[0]:
        group = objective.encode(record)
        assert group is not None
        tokens = group.sequences[0]
        ids = torch.tensor(tokens.ids.astype("int64"))
        labels = torch.where(torch.tensor(tokens.weights) > 0, ids, -100)
        with torch.no_grad():
            logits = plain(ids[None]).logits[0, :-1]
        nats += float(torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    assert before == pytest.approx(float(torch.tensor(nats / count).exp()), rel=1e-4)


def test_low_bit_base_is_merged_as_it_was_trained(
    adapter: Path, tiny_model_dir: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hqq")
    from luthier.base.config import to_yaml
    from luthier.run.rows import run_config

    config = run_config(adapter)
    assert config is not None
    quant = Quant(method="hqq", bits=4, group_size=32)
    changed = config.model_copy(update={"model": config.model.model_copy(update={"quant": quant})})
    (adapter / "config.yaml").write_text(to_yaml(changed))
    tree = parse(["--adapters", str(adapter), "--merge_lora", "true"], ExportConfig).tree
    folder = export(ExportConfig.model_validate(tree), Console())
    said = capsys.readouterr().err
    assert "held in 4 bits" in said and "rounded weights" in said
    model = config.model.model_copy(update={"quant": quant, "adapters": (str(adapter),)})
    live = load_model(model, torch.device("cpu"), tokenizer=load_tokenizer(model), trained=False)
    methods.attach(live, model.adapters)
    assert difference(live_logits(live), plain_logits(plain_model(folder))) < 1e-4


def test_gguf_and_modelfile(adapter: Path) -> None:
    pytest.importorskip("gguf")
    folder = made(adapter, "--to_ollama")
    assert (folder / "violin-f16.gguf").exists()
    text = (folder / "Modelfile").read_text()
    assert text.startswith("FROM ./violin-f16.gguf") and 'SYSTEM """Be kind."""' in text


class FakeHub:
    """A hub that keeps what it is given."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.made: dict[str, bool] = {}

    def create(self, name: str, *, private: bool) -> None:
        self.made[name] = private

    def upload(self, folder: Path, name: str, message: str) -> str:
        kept = [path for path in folder.rglob("*") if path.is_file() and path.name not in hubs.KEPT_HOME]
        self.files = {path.name: path.read_bytes().decode(errors="replace") for path in kept}
        return f"https://hub/{name}"


def test_what_is_published_has_no_paths_no_secrets_and_no_optimizer(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(hubs, "open_hub", lambda which: hub)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    (adapter / "optimizer.safetensors").write_bytes(b"state")
    (adapter.parents[1] / "report.md").write_text(f"## What to be careful about\n\n- Look at {tmp_path}/x, {SECRET}.\n")
    made(adapter, "--push_to_hub", "true", "--hub_model_id", "me/violin", "--hub_base", "Qwen/Qwen2-0.5B")
    assert hub.made == {"me/violin": True}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= hub.files.keys()
    assert not hub.files.keys() & {"optimizer.safetensors", "config.yaml", "MANIFEST.json", "export.json"}
    everything = "".join(hub.files.values())
    assert SECRET not in everything and str(tmp_path) not in everything and "/home/somebody" not in everything
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "Qwen/Qwen2-0.5B"
    card = hub.files["README.md"]
    assert "base_model: Qwen/Qwen2-0.5B" in card and "> Be kind." in card and "Look at x" in card


def test_publishing_without_a_token_is_refused_before_any_work(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for names in hubs.TOKENS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN"):
        made(adapter, "--push_to_hub", "true", "--hub_model_id", "me/violin")
    assert not (adapter.parents[1] / "exports").exists()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ([], "say what to make"),
        (["--push_to_hub", "true"], "hub_model_id"),
        (["--quant_method", "bnb", "--quant_bits", "3"], "4 or 8 bits"),
        (["--to_gguf", "--quant_bits", "4"], "types of its own"),
    ],
)
def test_impossible_wishes(flags: list[str], why: str, adapter: Path) -> None:
    with pytest.raises(ValueError, match=why):
        made(adapter, *flags)


def test_adapter_of_another_model_is_refused(adapter: Path, tiny_model_dir: Callable[..., Path]) -> None:
    other = tiny_model_dir("qwen2", hidden_size=64)
    with pytest.raises((ConfigError, ModelError)):
        made(adapter, "--model", str(other), "--merge_lora", "true")
    assert not list((adapter.parents[1] / "exports").iterdir())


def test_broken_weights_are_named(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir("qwen2"), broken)
    (broken / "model.safetensors").write_bytes(b"0" * 500)
    settings: dict[str, Any] = {"model": ModelConfig(path=str(broken)), "output_dir": str(tmp_path / "out")}
    with pytest.raises(ModelError, match=r"model\.safetensors: the weight file is damaged"):
        export(ExportConfig(**settings, to_gguf=True), Console(quiet=True))
    assert not (tmp_path / "out").exists()
