"""The servers of others as `--infer_backend`: from a command's settings to an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.base.errors import ConfigError, MissingExtra
from luthier.generate.config import Backend, EngineConfig
from luthier.model.config import ModelConfig
from luthier.model.folder import ADAPTER_SETTINGS, model_folder, read_json
from luthier.model.load import context_length
from luthier.run.opening import Manner, manner_of
from luthier.run.result import find

if TYPE_CHECKING:
    from luthier.serve.proxy import ProxyEngine


def open_peer(
    model: ModelConfig,
    backend: Backend,
    engine: EngineConfig,
    *,
    slots: int,
    max_length: int | None = None,
    named: Mapping[str, str] = {},
    later: bool = False,
) -> tuple[ProxyEngine, Manner, ModelConfig]:
    """An engine that is not started yet, how the model is spoken to, and what was opened.

    Args:
        named: adapters that will be loaded by name.
        later: whether further ones may be.

    Raises:
        ConfigError, ModelError: the model cannot be found, or not be served so.
        MissingExtra: the extra `serve` is not installed.
    """
    from luthier.serve.launch import Serving

    try:
        from luthier.serve.proxy import ProxyEngine
    except ImportError as error:
        raise MissingExtra(error.name or "httpx2", "serve", what_for=f"--infer_backend {backend}") from error

    assert backend not in ("transformers", "pt")
    manner, found = manner_of(model)
    if len(found.adapters) > 1:
        raise ConfigError(
            f"{backend} cannot add adapters up",
            where="--adapters",
            fix="Merge them first: luthier export --adapters DIR --merge_lora true",
        )
    tokenizer = manner.renderer.tokenizer
    longest = context_length(found, tokenizer)
    folders = [*found.adapters, *named.values()]
    serving = Serving(
        backend,
        str(model_folder(found).resolve()),
        max_length=min(max_length or longest, longest),
        slots=slots,
        dtype=found.dtype,
        adapters=bool(folders) or later,
        max_rank=max((_rank(found, folder) for folder in folders), default=64),
        quantization=_quantization(found, backend),
        command=engine.engine_command,
        arguments=engine.engine_args,
    )
    own = found.adapters[0] if found.adapters else None
    proxy = ProxyEngine(serving, tokenizer, _ends(found, manner), own=own, patience=engine.engine_timeout)
    return proxy, manner, found.model_copy(update={"adapters": ()})


def _ends(model: ModelConfig, manner: Manner) -> frozenset[int]:
    """The tokens that end an answer: the template's, the tokenizer's and the model's own."""
    file = model_folder(model) / "generation_config.json"
    own = read_json(file).get("eos_token_id") if file.exists() else None
    ends = [*manner.renderer.stop_ids, manner.renderer.tokenizer.eos_token_id]
    return frozenset(end for end in [*ends, *(own if isinstance(own, list) else [own])] if isinstance(end, int))


def _rank(model: ModelConfig, folder: str) -> int:
    found = find(model.model_copy(update={"adapters": (folder,)})).model.adapters[-1]
    return int(read_json(Path(found).expanduser() / ADAPTER_SETTINGS).get("r") or 64)


def _quantization(model: ModelConfig, backend: str) -> str | None:
    """The base as it was held in training, where the engine can hold it so."""
    quant = model.quant
    if not quant.on:
        return None
    if backend == "vllm" and quant.method == "bnb" and quant.bits == 4:
        return "bitsandbytes"
    raise ConfigError(
        f"{backend} cannot hold the base in {quant.bits} bits by {quant.method}, as in training",
        where="--infer_backend",
        fix="Merge it first with luthier export --merge_lora true, or take the original weights: "
        "--model.quant.method none",
    )
