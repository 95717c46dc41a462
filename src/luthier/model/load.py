"""Loading a tokenizer and a model: safetensors only, no code that was not asked for, no weight left to chance."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoTokenizer,
    CompressedTensorsConfig,
    GPTQConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from luthier.base.errors import ModelError
from luthier.model import ability, attention, heads, lowbit, probe, roundedfile, rounding
from luthier.model.architecture import read_settings
from luthier.model.calling import Calling
from luthier.model.causal import Model
from luthier.model.config import ModelConfig
from luthier.model.folder import check_weights, first_line, model_folder
from luthier.model.heads import CAUSAL, Head

__all__ = ["Model", "arithmetic_dtype", "context_length", "load_model", "load_tokenizer", "quiet"]

# Without any of these transformers would make up an empty tokenizer.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerFast:
    """The model's own tokenizer.

    Raises:
        ModelError: there is none, it is not a fast one, or it needs code of its own.
    """
    folder = model_folder(config)
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise ModelError(
            "no tokenizer here",
            where=str(folder),
            code="no_tokenizer",
            fix=_checkpoint_of(folder) or "Put its tokenizer.json and tokenizer_config.json beside the weights",
        )
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except Exception as error:  # the tokenizers library raises nothing more precise
        raise ModelError(
            f"the tokenizer cannot be read ({first_line(error)})",
            where=str(folder),
            code="no_tokenizer",
            fix="Download its files again",
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            "the tokenizer has no tokenizer.json, and slow tokenizers cannot mark which tokens are trained",
            where=str(folder),
            code="no_tokenizer",
            fix="Convert it once with transformers and save it beside the weights",
        )
    return tokenizer


def load_model(
    config: ModelConfig,
    device: torch.device,
    *,
    tokenizer: PreTrainedTokenizerFast,
    trained: bool,
    head: Head = CAUSAL,
) -> Model:
    """Load a model; safetensors only, and never with a weight that was not in the files.

    A `head` that classifies may be missing: it is then drawn from torch's random numbers, and `Model.note` says so.

    With `trained` the weights keep the type they are stored in, so that `methods.apply` can widen those that move
    without loss; otherwise they are held in the arithmetic's type.  What `config.quant` names is held in few bits.

    Raises:
        ModelError: naming what is missing or wrong, and what to do.
        MissingExtra: the library that holds weights in few bits is not installed.
    """
    folder = model_folder(config)
    settings = read_settings(folder, config, head.kind)
    pad: Any = tokenizer.pad_token_id
    heads.configure(settings, head, pad)
    check_weights(folder)
    dtype = arithmetic_dtype(config.dtype, device)
    stored = _stored_rounded(settings, folder, config, trained=trained)
    # Weights in the stored type are mapped from their files; on the way to few bits none is copied before its turn.
    kept: torch.dtype | Literal["auto"] = "auto" if trained or config.quant.on else dtype
    if config.attention == "sdpa" and attention.caps_scores(settings):
        raise ModelError(
            "this model caps its attention scores, which SDPA cannot compute",
            where="--attn_impl sdpa",
            fix="Use auto or eager",
        )
    if roundedfile.opens(settings):
        usual = attention.usual(settings, config.attention)
        network, drawn = roundedfile.read(folder, settings, device, dtype, usual), None
    else:
        network, drawn = _network(folder, config, settings, kept, head, device)
    network.requires_grad_(False).eval()
    held = None
    if config.quant.on:
        held = lowbit.quantize(network, config.quant, device, dtype)
        for weight in () if trained else network.parameters():
            weight.data = weight.data.to(dtype)
    elif stored == "bitsandbytes":
        held = lowbit.adopt(network, device, dtype)
    if stored is not None:  # what is not rounded is left in the type it is stored in
        for weight in network.parameters():
            if type(weight.data) is torch.Tensor and weight.is_floating_point():
                weight.data = weight.data.to(dtype)
    network.to(device)  # pyright: ignore[reportArgumentType]
    embedding: Any = network.get_input_embeddings()
    rows = embedding.weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {rows} rows",
            where=str(folder),
            fix="Use the tokenizer that the model was trained with",
        )
    calling, padded = _choose_attention(network, config, head)
    slow = ability.slow_there(dtype, config.quant.method, device)
    return Model(
        network,
        tokenizer,
        device=device,
        dtype=dtype,
        max_length=_max_length(settings, tokenizer),
        config=config,
        calling=calling,
        note=". ".join(note for note in (held, drawn, padded, slow) if note) or None,
        kind=head,
    )


def context_length(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """The longest sequence the model can hold, in tokens, without loading its weights.  Raises ModelError."""
    return _max_length(read_settings(model_folder(config), config, None), tokenizer)


def _checkpoint_of(run: Path) -> str | None:
    """What to name in place of a run's directory, if it is one."""
    for pointer in (run / "checkpoints" / "BEST", run / "checkpoints" / "LATEST"):
        if pointer.exists():
            return f"This is a run; name a checkpoint of it: {pointer.with_name(pointer.read_text().strip())}"
    return None


def arithmetic_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that `ModelConfig.dtype` stands for on a device."""
    if name == "auto":
        return torch.bfloat16 if ability.has_bfloat16(device) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _stored_rounded(settings: PreTrainedConfig, folder: Path, config: ModelConfig, *, trained: bool) -> str | None:
    """The library that rounded the weights before they were stored, if one did.

    Adapters are trained over those of bitsandbytes; others can be used as they are, and no more.
    """
    stored: Any = getattr(settings, "quantization_config", None)
    if stored is None:
        return None
    method = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    method = str(getattr(method, "value", method))
    if config.quant.on or (trained and method != "bitsandbytes"):
        raise ModelError(
            f"its weights are stored rounded already ({method})",
            where=str(folder),
            code="stored_rounded",
            fix="Take the model's original weights; --quant_bits 4 rounds them when they are loaded"
            if method != "bitsandbytes"
            else "Leave --quant_method and --quant_bits out",
        )
    if method == "bitsandbytes":
        rounding.bitsandbytes(f"the model {folder.name}")
    return method


def _network(
    folder: Path,
    config: ModelConfig,
    settings: PreTrainedConfig,
    dtype: torch.dtype | Literal["auto"],
    head: Head,
    device: torch.device,
) -> tuple[PreTrainedModel, str | None]:
    """The transformers model with every weight taken from the files, and what to say of a head that was not there."""
    with quiet():
        network, report = heads.loader(head)(
            folder,
            **_unpacking(settings, device),
            config=settings,
            dtype=dtype,
            attn_implementation=attention.usual(settings, config.attention),
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with all else that is wrong
        )
    faults = {
        "missing": report["missing_keys"],
        "of another shape": [item[0] for item in report["mismatched_keys"]],
        "not known to the model": report["unexpected_keys"],
    }
    drawn = sorted(
        name for name in (*faults["missing"], *faults["of another shape"]) if heads.belongs(name, network, head)
    )
    for fault, all_names in faults.items():
        names = [name for name in all_names if not heads.belongs(name, network, head)]
        if names:
            shown = ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")
            raise ModelError(
                f"{len(names)} weights are {fault}: {shown}",
                where=str(folder),
                code="wrong_weights",
                fix="The weights and config.json do not belong together; download the model again",
            )
    return network, f"New, and drawn at random: {', '.join(drawn)}" if drawn else None


def _unpacking(settings: PreTrainedConfig, device: torch.device) -> dict[str, Any]:
    """How weights that were stored rounded are read, where the usual way runs on other machines only."""
    stored: Any = getattr(settings, "quantization_config", None) or {}
    told = dict(stored if isinstance(stored, dict) else stored.to_dict())
    if told.get("quant_method") == "compressed-tensors":
        # Its own modules run on the servers it is meant for; here the rounded numbers are multiplied as they are.
        return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    if told.get("quant_method") == "gptq" and device.type == "cpu":
        # The kernel it would choose is compiled on the spot, for minutes.
        return {"quantization_config": GPTQConfig(bits=int(told["bits"]), backend="gptq_torch")}
    return {}


def _choose_attention(network: PreTrainedModel, config: ModelConfig, head: Head) -> tuple[Calling, str | None]:
    """Switch to packed attention where it is wanted and exact; else say why sequences are padded."""
    calling = probe.called(network, head)
    if config.attention in ("sdpa", "eager"):
        return calling, None
    reason = "its decoder reads an encoder" if network.config.is_encoder_decoder else attention.obstacle(network)
    if reason is None:
        before: Any = network.config._attn_implementation  # pyright: ignore[reportPrivateUsage]
        network.set_attn_implementation(attention.NAME)
        if probe.runs_packed(network, head, calling):
            return replace(calling, packed=True), None
        network.set_attn_implementation(before)
        reason = "its sequences would see each other"
    if config.attention == "packed":
        raise ModelError(f"this model cannot run packed: {reason}", where="--attn_impl packed", fix="Use auto")
    return calling, f"Sequences are padded, not packed: {type(network).__name__} cannot run packed, {reason}"


def _max_length(settings: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """Positions of the model; where it names none, what the tokenizer says."""
    positions = getattr(settings.get_text_config(), "max_position_embeddings", None)
    said = min(tokenizer.model_max_length, 2**31 - 1)
    if positions and not settings.is_encoder_decoder and not any("CausalLM" in a for a in settings.architectures or ()):
        return min(int(positions), said)  # RoBERTa has positions that no token stands on
    return int(positions or said)


@contextmanager
def quiet() -> Generator[None]:
    """transformers' own report of a load is replaced by our errors."""
    level = transformers_logging.get_verbosity()
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if progress:
            transformers_logging.enable_progress_bar()
