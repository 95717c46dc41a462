"""One export under way: what it is made of, where it goes, and the words that travel with the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from luthier.base.console import Console
from luthier.base.records import Json
from luthier.data.render import Renderer
from luthier.export.card import card, public_name
from luthier.export.config import ExportConfig
from luthier.model.device import device_of
from luthier.model.folder import read_json
from luthier.model.load import load_tokenizer
from luthier.run.config import RunConfig
from luthier.run.published import card_facts
from luthier.run.result import Usable, find
from luthier.run.rows import run_config


@dataclass
class Job:
    """One export under way."""

    options: ExportConfig
    console: Console
    usable: Usable
    trained: RunConfig | None
    tokenizer: PreTrainedTokenizerFast
    renderer: Renderer
    device: torch.device
    facts: dict[str, Json] = field(default_factory=dict[str, Json])
    """export.json: what was done, and what it measured."""

    @property
    def source(self) -> Path:
        """The adapter or model that is exported."""
        model = self.usable.model
        return Path(model.adapters[-1] if model.adapters else model.path).expanduser()

    @property
    def title(self) -> str:
        """A name for people: of a checkpoint, that of its run's parent."""
        folder = self.source.resolve()
        return folder.parents[2].name if folder.parent.name == "checkpoints" else folder.name


def open_job(options: ExportConfig, console: Console) -> Job:
    """Find what is to be exported.  Raises ConfigError, ModelError."""
    device, usable = device_of(options.device), find(options.model)
    source = Path(usable.model.adapters[-1] if usable.model.adapters else usable.model.path).expanduser()
    tokenizer = load_tokenizer(usable.tokenizer)
    renderer = Renderer(tokenizer, template=usable.model.template, template_args=usable.model.template_args)
    return Job(options, console, usable, run_config(source), tokenizer, renderer, device)


def place(job: Job) -> Path:
    """Where the result goes: beside what it is made of, or into the run's exports; named after what was done."""
    options = job.options
    if options.output_dir is not None:
        return Path(options.output_dir).expanduser()
    parts = ["merged"] if job.usable.model.adapters else []
    if options.quant_method is not None:
        parts.append(f"{options.quant_method}-{options.quant_bits}bit")
    elif options.to_gguf:
        parts.append("ollama" if options.to_ollama else "gguf")
    elif not options.merge_lora:
        parts = ["hub"]
    source = job.source.resolve()
    if not source.is_dir():  # a hub id or the bundled model
        source = Path.cwd() / public_name(job.usable.model.path).replace("/", "-")
    if source.parent.name == "checkpoints":  # where only checkpoints may lie
        source = source.parents[1] / "exports" / source.name
    return source.with_name(f"{source.name}-{'-'.join(parts) or 'copy'}")


def write_words(job: Job, out: Path) -> None:
    """Tokenizer, chat template, and the tokens that end an answer."""
    job.tokenizer.chat_template = job.renderer.template
    job.tokenizer.save_pretrained(out)
    if (out / "config.json").exists():
        write_generation(job, out, out)


def write_generation(job: Job, source: Path, out: Path) -> None:
    """generation_config.json, with the tokens that end an answer in this template."""
    file = source / "generation_config.json"
    settings: dict[str, Any] = read_json(file) if file.exists() else {}
    own = settings.get("eos_token_id", job.tokenizer.eos_token_id)
    ends = dict.fromkeys([*(own if isinstance(own, list) else [own]), *sorted(job.renderer.stop_ids)])
    settings["eos_token_id"] = [end for end in ends if end is not None]
    if settings.get("temperature") is not None or settings.get("top_p") is not None:
        settings["do_sample"] = True  # transformers refuses a temperature that is not used
    (out / "generation_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_card(job: Job, out: Path, kind: str, made: str) -> None:
    """README.md."""
    options = job.options
    name = options.hub_model_id or "FOLDER"
    base = options.hub_base or (job.usable.model.path if job.trained is None else job.trained.model.path)
    whole = not job.usable.model.adapters and job.trained is None
    usage = {
        "an adapter": f"from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        "a GGUF file": "",
    }.get(
        kind,
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
    )
    title = options.hub_model_id or job.title
    base = "" if whole and not options.hub_base else base
    checkpoint = job.source.resolve() if job.trained is not None else None
    facts = card_facts(title, base, kind, made, usage, job.trained, checkpoint)
    (out / "README.md").write_text(card(facts), encoding="utf-8")
