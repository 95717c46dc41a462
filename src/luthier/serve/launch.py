"""How the servers of others are started: command lines as pure functions of what is to be served.

Every one of them listens on the loopback only, is given ids and never text to render, and gets a key of its own, so
that nobody goes around our routes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from luthier.base.errors import ConfigError

Peer = Literal["vllm", "sglang", "lmdeploy"]

_USUAL: Mapping[Peer, tuple[str, ...]] = {
    "vllm": ("vllm", "serve"),
    "sglang": ("python", "-m", "sglang.launch_server"),
    "lmdeploy": ("lmdeploy", "serve", "api_server"),
}
"""What starts each; another program may stand in the first place."""

BASE = "base"
"""The engine's own name for the base model."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What an engine is to serve, and how."""

    peer: Peer
    model: str
    """Folder of the model."""
    max_length: int
    slots: int
    dtype: str = "auto"
    tokenizer: str | None = None
    revision: str | None = None
    adapters: bool = False
    """Whether adapters will be loaded."""
    max_rank: int = 64
    """Largest rank of an adapter."""
    quantization: str | None = None
    """How the weights are rounded when they are loaded, in vLLM's words."""
    command: str | None = None
    """Its program, instead of the one that the path leads to."""
    arguments: str = ""
    """Further arguments, as on a command line."""
    seed: int = 0
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


def command_line(serving: Serving, port: int, key: str) -> list[str]:
    """The words that start an engine on 127.0.0.1."""
    program, *rest = _USUAL[serving.peer]
    start = [*(shlex.split(serving.command) if serving.command else [program]), *rest]
    known = {"vllm": _vllm, "sglang": _sglang, "lmdeploy": _lmdeploy}
    return [*start, *known[serving.peer](serving, port, key), *shlex.split(serving.arguments)]


def environment(serving: Serving, key: str, own: Mapping[str, str]) -> dict[str, str]:
    """The engine's environment: ours without secrets, and what it needs."""
    kept = {name: value for name, value in own.items() if not _secret(name)}
    if serving.peer == "vllm":
        kept |= {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
    return kept | dict(serving.environment)


def _secret(name: str) -> bool:
    return name.startswith("LUTHIER_API") or name in ("OPENAI_API_KEY", "WANDB_API_KEY", "MODELSCOPE_API_TOKEN")


def _vllm(serving: Serving, port: int, key: str) -> list[str]:
    words = [serving.model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE]
    words += ["--max-model-len", str(serving.max_length), "--max-num-seqs", str(serving.slots)]
    words += ["--dtype", serving.dtype, "--seed", str(serving.seed), "--generation-config", "vllm"]
    if serving.tokenizer is not None:
        words += ["--tokenizer", serving.tokenizer]
    if serving.revision is not None:
        words += ["--revision", serving.revision]
    if serving.quantization is not None:
        words += ["--quantization", serving.quantization]
    if serving.adapters:
        words += ["--enable-lora", "--max-lora-rank", str(_rank(serving.max_rank))]
    return words


def _sglang(serving: Serving, port: int, key: str) -> list[str]:
    if serving.quantization is not None:
        raise _no_rounding(serving)
    words = ["--model-path", serving.model, "--host", "127.0.0.1", "--port", str(port), "--api-key", key]
    words += ["--served-model-name", BASE, "--context-length", str(serving.max_length)]
    words += ["--max-running-requests", str(serving.slots), "--dtype", serving.dtype]
    words += ["--random-seed", str(serving.seed), "--sampling-defaults", "openai"]
    if serving.tokenizer is not None:
        words += ["--tokenizer-path", serving.tokenizer]
    if serving.revision is not None:
        words += ["--revision", serving.revision]
    if serving.adapters:
        words += ["--enable-lora", "--max-lora-rank", str(serving.max_rank), "--lora-target-modules", "all"]
    return words


def _lmdeploy(serving: Serving, port: int, key: str) -> list[str]:
    if serving.adapters:
        raise ConfigError(
            "LMDeploy takes no adapters from here",
            where="--infer_backend lmdeploy",
            fix="Merge them first: luthier export --adapters DIR --merge_lora true",
        )
    if serving.quantization is not None:
        raise _no_rounding(serving)
    words = [serving.model, "--server-name", "127.0.0.1", "--server-port", str(port), "--api-keys", key]
    words += ["--model-name", BASE, "--session-len", str(serving.max_length)]
    words += ["--max-batch-size", str(serving.slots), "--dtype", serving.dtype]
    return words + (["--revision", serving.revision] if serving.revision is not None else [])


def _no_rounding(serving: Serving) -> ConfigError:
    return ConfigError(
        f"{serving.peer} does not round weights when it loads them",
        where="--quant_method",
        fix="Export the model in few bits first: luthier export --quant_method bnb",
    )


def _rank(rank: int) -> int:
    """The smallest rank that vLLM allocates which holds this one."""
    allowed: Sequence[int] = (8, 16, 32, 64, 128, 256, 320, 512)
    for size in allowed:
        if rank <= size:
            return size
    raise ConfigError(f"vLLM takes adapters up to rank {allowed[-1]}, not {rank}", where="--adapters")
