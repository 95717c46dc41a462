"""Whether a model is of an architecture that can do what is asked of it, by its config.json alone."""

from __future__ import annotations

from pathlib import Path

import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from luthier.base.errors import ModelError
from luthier.model import heads
from luthier.model.config import ModelConfig
from luthier.model.folder import ADAPTER_SETTINGS, model_folder, read_json
from luthier.model.heads import Kind


def read_settings(folder: Path, config: ModelConfig, wanted: Kind | None) -> PreTrainedConfig:
    """The model's config, once it is known to be of an architecture that transformers itself implements for a task."""
    if not (folder / "config.json").exists() and (folder / ADAPTER_SETTINGS).exists():
        raise ModelError(
            "is an adapter, not a model",
            where=str(folder),
            fix="Give its base as --model and this folder as --adapters",
        )
    raw = read_json(folder / "config.json")
    kind, architectures = raw.get("model_type"), raw.get("architectures") or []
    native = kind in CONFIG_MAPPING
    if not native and "auto_map" in raw and not config.trust_remote_code:
        raise ModelError(
            "the model brings Python code of its own, which is not run unless asked for",
            where=str(folder),
            code="remote_code",
            fix="If you trust it, add --trust_remote_code true",
        )
    if not native and "auto_map" not in raw:
        raise ModelError(
            f"transformers {transformers.__version__} does not know the model type {kind!r}",
            where=str(folder / "config.json"),
            code="unknown_architecture",
            fix="A newer transformers may",
        )
    if native and wanted is not None:
        _refuse_other_architecture(folder, kind, architectures, wanted)
    return AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)


def check_head(config: ModelConfig, wanted: Kind) -> None:
    """Look at a model's files for whether it can have a head, before anything that takes long.

    Raises:
        ModelError: it cannot.
    """
    read_settings(model_folder(config), config, wanted)


_SUITED: dict[Kind | None, str] = {
    "masked": "An encoder is trained by --task_type mlm, seq_cls, token_cls, embedding or reranker",
    "seq2seq": "An encoder with a decoder is trained by --task_type seq2seq, or span_corruption if it is a T5",
    "causal": "A language model is trained without --task_type, or by seq_cls, token_cls, embedding, "
    "generative_reranker or distill",
}
"""What a model that lacks a task's architecture can be trained for, by what it was made for."""


def _refuse_other_architecture(folder: Path, kind: str | None, architectures: list[str], wanted: Kind) -> None:
    known = heads.written_for(wanted)
    # What only classifies has no vocabulary to score: its head cannot be made up.
    other = wanted in ("causal", "seq2seq") and architectures and set(known.values()).isdisjoint(architectures)
    if kind in known and not other:
        return
    ending = heads.CLASSES[wanted].removeprefix("AutoModel")
    suited = _SUITED.get(heads.made_for(read_json(folder / "config.json")))
    other_model = f"give a model whose architecture ends in {ending}" if ending else "give another model"
    raise ModelError(
        f"{', '.join(architectures) or kind} is not {heads.WORDS[wanted]}",
        where=str(folder / "config.json"),
        code="wrong_architecture",
        fix=f"{suited}; or {other_model}" if suited else other_model.capitalize(),
    )
