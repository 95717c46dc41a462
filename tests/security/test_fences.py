"""X2, X3: what comes with models, adapters, recipes and data is never run, and secrets are never written down."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Spoil = Callable[[Path, str], object]
"""Puts something hostile into a folder; the text is Python that makes the canary."""

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists only if hostile code has run."""
    return tmp_path / "canary"


def bomb(path: Path, canary: Path) -> None:
    """A pickle that makes the canary when it is opened."""

    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return canary.write_text, ("boom",)

    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(Boom()))
    else:
        torch.save(Boom(), path)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def copied(job: Any, name: str = "model") -> Path:
    job.model = Path(shutil.copytree(job.model, job.folder / name))
    return job.model


def test_the_bombs_of_these_tests_work(tmp_path: Path, canary: Path) -> None:
    for name in ("a.pkl", "a.bin"):
        bomb(tmp_path / name, canary)
        if name == "a.pkl":
            pickle.loads((tmp_path / name).read_bytes())
        else:
            torch.load(tmp_path / name, weights_only=False)
        assert canary.read_text() == "boom"
        canary.unlink()


def test_pickles_are_neither_opened_nor_written(job: Any, canary: Path) -> None:
    folder = copied(job)
    for name in ("pytorch_model.bin", "training_args.bin", "tokenizer.pkl"):
        bomb(folder / name, canary)
    job.run(max_steps=2)
    (checkpoint,) = job.checkpoints().all()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.bin", "pytorch_model.bin"):
        bomb(checkpoint / name, canary)
    job.run(max_steps=4, resume_from_checkpoint=checkpoint, allow_change="train.max_steps")
    job.call("infer", "--adapters", checkpoint, "--max_new_tokens", 2, stdin="hello\n")
    assert not canary.exists()
    (run,) = job.runs()
    written = [path for path in run.rglob("*") if path.is_file() and checkpoint not in path.parents]
    assert run / "checkpoints" / "step-00000004" / "optimizer.safetensors" in written
    # Pickles begin with 0x80, torch's are zip archives.
    assert not [path for path in written if path.suffix in PICKLES or path.read_bytes()[:2] in (b"\x80\x04", b"PK")]


def test_an_adapter_of_pickles_is_refused(job: Any, canary: Path) -> None:
    job.run(max_steps=1)
    (checkpoint,) = job.checkpoints().all()
    (checkpoint / "adapter_model.safetensors").unlink()
    bomb(checkpoint / "adapter_model.bin", canary)
    for said in (
        job.run(expect=2, adapters=checkpoint),
        job.call("infer", "--model", job.model, "--adapters", checkpoint, expect=2, stdin="hello\n"),
    ):
        assert "adapter_model.bin" in said and "pickled" in said
    assert not canary.exists()


def remote_model(folder: Path, code: str) -> None:
    edit(folder / "config.json", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text(code)


def remote_tokenizer(folder: Path, code: str) -> None:
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Slow", "own.Fast"]})
    (folder / "own.py").write_text(code)


def own_generation(folder: Path, code: str) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)


def foreign_kernel(folder: Path, code: str) -> None:
    edit(folder / "config.json", attn_implementation="someone/kernel", _attn_implementation="someone/kernel")


CODE: dict[str, Spoil] = {
    "remote-model": remote_model,
    "remote-tokenizer": remote_tokenizer,
    "own-generation": own_generation,
    "foreign-kernel": foreign_kernel,
}


@pytest.mark.parametrize("name", CODE)
def test_code_beside_a_known_architecture_is_left_alone(name: str, job: Any, canary: Path) -> None:
    CODE[name](copied(job), f"open({str(canary)!r}, 'w').write('boom')\n")
    said = job.run(max_steps=1) + job.call("infer", "--model", job.model, "--max_new_tokens", 2, stdin="hello\n")
    assert "someone/kernel" not in said
    assert not canary.exists()


def test_a_script_beside_the_data_is_not_run(job: Any, canary: Path) -> None:
    folder = job.folder / "set"
    folder.mkdir()
    shutil.copy(job.data, folder)
    (folder / "set.py").write_text(f"open({str(canary)!r}, 'w').write('boom')\n")
    job.run(max_steps=1, dataset=folder)
    assert not canary.exists()


def test_settings_that_travel_with_a_result_are_plain(job: Any, canary: Path) -> None:
    job.run(max_steps=1)
    (checkpoint,) = job.checkpoints().all()
    (checkpoint / "config.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {canary}']\n")
    said = job.call("infer", "--adapters", checkpoint, expect=2, stdin="hello\n")
    assert "config.yaml" in said and "plain YAML" in said
    assert not canary.exists()


@pytest.mark.parametrize(
    "source",
    [
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
        "{{ (lipsum | attr('__globals__'))['os'].system('touch CANARY') }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    ],
    ids=["globals", "filter", "endless"],
)
def test_a_hostile_template_is_refused_by_every_command(source: str, job: Any, canary: Path) -> None:
    file = job.folder / "hostile.jinja"
    file.write_text("{{ messages[0].content }}" + source.replace("CANARY", str(canary)))
    model = ("--model", job.model, "--template", file)
    for said in (
        job.run(expect=2, template=file),
        job.call("preview", job.data, *model, expect=2),
        job.call("infer", *model, expect=2, stdin="hello\n"),
    ):
        assert "--template" in said and "Traceback" not in said
    assert not canary.exists() and not job.runs()


def test_text_is_never_a_program(job: Any) -> None:
    evil = "{{ 600 + 66 }} <script>alert(1)</script>"
    data = job.folder / "<img src=x onerror=alert(2)>.jsonl"
    row = {"messages": [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]}
    data.write_text(json.dumps(row) + "\n")
    job.run(max_steps=1, dataset=data, max_length=128)
    page = (job.runs()[0] / "preview.html").read_text()
    text = re.sub("<[^>]*>", "", page)
    assert "{{ 600 + 66 }}" in text and "666" not in text and "alert(1)" in text and "alert(2)" in text
    assert "<script>alert" not in page and "<img src=x" not in page


def outside(job: Any) -> set[Path]:
    """Every path below the job's folder that is not in a place it may write to."""
    mine = (job.output_dir, job.folder / "cache")
    found = {path for path in job.folder.rglob("*") if not any(path == own or own in path.parents for own in mine)}
    return {path for path in found if not path.name.startswith("output-")}


def test_names_do_not_lead_out_of_the_run(job: Any) -> None:
    job.output_dir = job.folder / "deep" / "er" / "out"
    job.output_dir.mkdir(parents=True)
    before = outside(job)
    job.run(max_steps=1, run_name="../../../evil", report_to="tensorboard")
    assert outside(job) == before
    (run,) = job.runs()
    (run / "checkpoints" / "LATEST").write_text("../../elsewhere/step-00000001\n")
    assert job.checkpoints().named("LATEST") == run / "checkpoints" / "step-00000001"


def test_weights_outside_the_model_are_refused(job: Any) -> None:
    folder = copied(job)
    (folder / "model.safetensors").rename(job.folder / "stolen.safetensors")
    weights = {"weight_map": {"model.norm.weight": "../stolen.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(weights))
    assert "outside its folder" in job.run(expect=2)


SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "OPENAI_API_KEY": "sk-proj-zyxwvutsrqponmlkjihgfedcba9876543210",
    "MY_SERVICE_PASSWORD": "correct horse battery staple",
}


def leaks(place: Path, *texts: str) -> list[str]:
    """Names of secrets found in any file below a folder or in a text."""
    contents = [path.read_bytes() for path in place.rglob("*") if path.is_file()] + [text.encode() for text in texts]
    return [name for name, secret in SECRETS.items() if any(secret.encode() in content for content in contents)]


def test_secrets_of_the_environment_are_never_written(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    said = [job.run(max_steps=2, report_to="tensorboard"), job.run(max_steps=2, resume_from_checkpoint="true")]
    said.append(job.run(expect=2, model="/no/such/folder"))
    said.append(job.call("sft", "--json", "--dry_run", "--model", job.model, "--dataset", job.data))
    said.append(job.call("doctor"))
    assert not leaks(job.folder, *said)


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_in_settings_are_refused(name: str, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = SECRETS[name]
    if name == "MY_SERVICE_PASSWORD":  # without a shape of its own, it is known from the environment
        monkeypatch.setenv(name, secret)
    arguments = json.dumps({"api_key" if name == "WANDB_API_KEY" else "note": secret})
    said = job.run(expect=2, template_args=arguments)
    assert "model.template_args" in said and "secret" in said
    said += job.run(expect=2, dataset=f"https://me:{secret}@host/set.jsonl")
    assert not leaks(job.folder, said)
    assert not job.runs()
