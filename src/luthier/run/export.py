"""What was trained, made into files that others open: merged, rounded, as GGUF, for Ollama, on a hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from luthier import __version__
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import Json
from luthier.base.sizes import told
from luthier.data.batch import Group
from luthier.export import hub as hubs
from luthier.export.card import public_name
from luthier.export.config import ExportConfig
from luthier.export.gguf import Speech, write_gguf
from luthier.export.measure import perplexity
from luthier.export.merge import LICENCES, Unstreamable, merge_files
from luthier.export.ollama import adds_bos, modelfile
from luthier.export.output import size_of, staged
from luthier.export.quantize import Rounded, quantize
from luthier.model import methods
from luthier.model.adapterfile import adapter_folder
from luthier.model.config import ModelConfig
from luthier.model.folder import ADAPTER_SETTINGS, check_weights, model_folder, read_json
from luthier.model.load import context_length, load_model
from luthier.objectives.config import Pretrain, Sft
from luthier.objectives.language import Language
from luthier.run.exporting import Job, open_job, place, write_card, write_generation, write_words
from luthier.run.rows import rows_of

_PUBLIC = (
    "adapter_model.safetensors",
    ADAPTER_SETTINGS,
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_WHOLE = ("model*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json")


def export(options: ExportConfig, console: Console) -> Path:
    """Make what is asked for; returns the folder it lies in.

    Raises:
        ConfigError, ModelError, MissingExtra: it cannot be made; nothing is left behind.
        RunError: the disk is full, or the hub did not take it.
    """
    hub = hubs.open_hub(options.model.hub) if options.push_to_hub else None  # a missing token is known at once
    job = open_job(options, console)
    folder = place(job)
    with staged(folder) as out:
        kind, made = _make(job, out, folder)
        _copy_licences(job, out)
        write_card(job, out, kind, made)
        facts: dict[str, Json] = {"luthier": __version__, "source": job.title, **job.facts, "bytes": size_of(out)}
        (out / "export.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    console.result(f"{folder}: {told(size_of(folder))}", path=str(folder), **facts)
    if hub is not None:
        name = str(options.hub_model_id)
        with console.live() as line:
            line.update(f"Publishing {name}")
            address = hubs.publish(hub, folder, name, options.commit_message, private=options.hub_private)
        console.result(f"Published: {address}", published=address)
    return folder


def _make(job: Job, out: Path, folder: Path) -> tuple[str, str]:
    """Write the files; returns what they are and how they were made, for the card."""
    options = job.options
    if not (options.merge_lora or options.quant_method or options.to_gguf):
        return _copy_public(job, out)
    if not job.usable.model.adapters and not (options.quant_method or options.to_gguf):
        raise ConfigError(
            "there is nothing to merge: no adapter was named", where="--merge_lora", fix="Give it as --adapters"
        )
    if options.to_gguf:
        with _plain(job, folder) as model:
            return _gguf(job, model, out)
    if options.quant_method is not None:
        with _plain(job, folder) as model:
            return _rounded(job, model, out)
    made = _merge(job, out)
    write_words(job, out)
    return "a whole model", made


def _copy_licences(job: Job, out: Path) -> None:
    """Weights that were made of the base's keep its licence beside them."""
    if not any(out.glob("model*.safetensors")) and not any(out.glob("*.gguf")):
        return
    base = model_folder(job.usable.model)
    for name in LICENCES:
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)


@contextmanager
def _plain(job: Job, folder: Path) -> Generator[Path]:
    """The model without adapters: its own folder, or what merging gives, for the time of the block."""
    if not job.usable.model.adapters:
        plain = model_folder(job.usable.model)
        check_weights(plain)
        yield plain
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.work-", dir=folder.parent))
    try:
        _merge(job, work)
        write_words(job, work)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _merge(job: Job, out: Path) -> str:
    """Write the merged model into `out`; returns how, in a sentence or two."""
    model = job.usable.model
    base = model_folder(model)
    methods.check_files(model)
    dtype = None if model.dtype == "auto" else getattr(torch, model.dtype)
    if model.quant.on:
        why = f"the adapter was trained over a base held in {model.quant.bits} bits"
    else:
        try:
            with job.console.live() as line:
                line.update("Merging the adapter, weight by weight")
                folders = [adapter_folder(model, path) for path in model.adapters]
                merged = merge_files(base, folders, out, dtype)
        except Unstreamable as reason:
            why = str(reason)
        else:
            job.facts |= {"merged_weights": merged.changed, "rounding": merged.rounding}
            made = f"The adapter was merged in float32 into {merged.changed} weights."
            if merged.rounding:
                written = _stored_dtype(out)
                made += f" {written} takes {merged.rounding:.2%} of what the adapter changed."
                if merged.rounding > 0.05:
                    job.console.warn(
                        f"{written} cannot hold {merged.rounding:.0%} of the adapter's change; "
                        "--torch_dtype float32 keeps all of it"
                    )
            return made
    job.console.say(f"Merging the whole model in memory: {why}")
    live = _load(model if model.dtype != "auto" else model.model_copy(update={"dtype": _stored_dtype(base)}), job)
    methods.attach(live, model.adapters)
    note = methods.merge(live, out)
    if note:
        job.console.say(f"{note}. --model.quant.method none merges it into the original weights instead")
    return "The adapter was merged in float32." + (f" {note}." if note else "")


def _rounded(job: Job, model: Path, out: Path) -> tuple[str, str]:
    """Round, and measure what that costs."""
    options, console = job.options, job.console
    assert options.quant_method is not None and options.quant_bits is not None
    records, origin = rows_of(options.dataset, job.trained, options.rows)
    learned = None if job.trained is None else job.trained.objective
    objective = Language(learned if isinstance(learned, Pretrain | Sft) else Sft(), job.renderer)
    groups = [group for group in map(objective.encode, records) if group is not None]
    plain = ModelConfig(path=str(model), dtype=job.usable.model.dtype)
    groups = _fitting(groups, plain, job)
    samples = [group.sequences[0].ids.tolist() for group in groups]
    with console.live() as line:
        line.update(f"Rounding to {options.quant_bits} bits ({options.quant_method})")
        quantize(
            model, out, Rounded(options.quant_method, options.quant_bits, options.quant_group, job.device, samples)
        )
    write_words(job, out)
    if (model / "generation_config.json").exists():
        write_generation(job, model, out)
    before = perplexity(_load(plain, job), groups)
    after = perplexity(_load(plain.model_copy(update={"path": str(out)}), job), groups)
    sizes = size_of(model), size_of(out)
    rows: list[dict[str, Json]] = [
        {"": "size of the weights", "before": told(sizes[0]), "after": told(sizes[1])},
        {"": "perplexity", "before": f"{before.value:.4f}", "after": f"{after.value:.4f}"},
    ]
    console.say(f"Measured on {before.tokens:,} tokens of {len(groups)} rows: {origin}")
    console.table(f"Rounded to {options.quant_bits} bits", rows)
    job.facts |= {
        "quant_method": options.quant_method,
        "quant_bits": options.quant_bits,
        "bytes_before": sizes[0],
        "bytes_after": sizes[1],
        "perplexity_before": before.value,
        "perplexity_after": after.value,
        "measured_rows": len(groups),
        "measured_tokens": before.tokens,
        "measured_on": origin,
    }
    cost = (
        f"Its weights were rounded to {options.quant_bits} bits by {options.quant_method}: {told(sizes[1])} instead "
        f"of {told(sizes[0])}, perplexity {after.value:.3f} instead of {before.value:.3f} on {before.tokens:,} tokens."
    )
    return "a whole model in few bits", cost


def _fitting(groups: list[Group], plain: ModelConfig, job: Job) -> list[Group]:
    longest = context_length(plain, job.tokenizer)
    return [group for group in groups if len(group) <= longest]


def _gguf(job: Job, model: Path, out: Path) -> tuple[str, str]:
    options, renderer = job.options, job.renderer
    name = f"{job.title}-{options.gguf_type}.gguf"
    text = modelfile(renderer, name, job.usable.system) if options.to_ollama else None
    speech = Speech(renderer.template, renderer.stop_ids, adds_bos(renderer))
    with job.console.live() as line:
        line.update(f"Writing {name}, and reading it back")
        error = write_gguf(model, out / name, options.gguf_type, job.tokenizer, speech)
    if text is not None:
        (out / "Modelfile").write_text(text, encoding="utf-8")
    job.facts |= {"gguf_type": options.gguf_type, "largest_relative_error": error}
    made = f"Its matrices are {options.gguf_type}; read back, no tensor is more than {error:.3%} off."
    return "a GGUF file", made


def _copy_public(job: Job, out: Path) -> tuple[str, str]:
    """What of a checkpoint or model may be published, without the paths of this machine."""
    adapter = bool(job.usable.model.adapters)
    source = job.source if adapter else model_folder(job.usable.model)
    for pattern in _PUBLIC if adapter else (*_WHOLE, *_PUBLIC[2:]):
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, out / path.name)
    if adapter:
        methods.check_files(job.usable.model)
        settings: dict[str, Any] = read_json(out / ADAPTER_SETTINGS)
        settings["base_model_name_or_path"] = job.options.hub_base or public_name(job.usable.model.path)
        (out / ADAPTER_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    write_words(job, out)
    return ("an adapter", "") if adapter else ("a whole model", "")


def _load(config: ModelConfig, job: Job) -> Any:
    return load_model(config, job.device, tokenizer=job.tokenizer, trained=False)


def _stored_dtype(folder: Path) -> str:
    """The type a model's weights are stored in, by its config.json."""
    settings = read_json(folder / "config.json")
    return str(settings.get("dtype") or settings.get("torch_dtype") or "float32")
