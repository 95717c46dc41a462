"""PEFT's own settings for each method that it carries out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from luthier.base.errors import ConfigError, ModelError
from luthier.model import heads
from luthier.model.causal import Model
from luthier.model.method import AdaLora, Adapting, Boft, Ia3, LnTuning, Lora, Oft, Prefix, Prompt, PTuning, Vera
from luthier.model.vocabulary import new_ids

if TYPE_CHECKING:
    from peft import PeftConfig

_MANY_STEPS = 2**31
"""Stands for the length of the run in AdaLoRA's settings until it is known."""


def peft_settings(model: Model, method: Adapting) -> PeftConfig:
    """What PEFT is asked for.

    Raises:
        ModelError: IA3 on an architecture whose layers must be named, or norms where there are none.
        ConfigError: see `_among` and `_within_width`.
    """
    import peft

    common: dict[str, Any] = {
        "task_type": heads.PEFT_TASKS[model.kind.kind],
        "base_model_name_or_path": model.base.name_or_path,
    }
    learned = heads.modules(model.base, model.kind)
    if learned:
        common["modules_to_save"] = learned
    match method:
        case Lora():
            return _lora(model, method, common)
        case AdaLora():
            return peft.AdaLoraConfig(
                **common,
                target_modules=_target(model, method.target),
                init_r=method.initial_rank,
                target_r=method.target_rank,
                lora_alpha=method.alpha,  # pyright: ignore[reportArgumentType]
                lora_dropout=method.dropout,
                deltaT=method.allocate_every,
                orth_reg_weight=method.orthogonal,
                total_step=_MANY_STEPS,
            )
        case Vera():
            return peft.VeraConfig(
                **common,
                target_modules=_target(model, method.target),
                r=method.rank,
                vera_dropout=method.dropout,
                d_initial=method.d_initial,
                projection_prng_key=method.projection_seed,
            )
        case Ia3():
            targets, feedforward = _scaled(model, method)
            return peft.IA3Config(**common, target_modules=targets, feedforward_modules=feedforward)
        case Oft():
            return peft.OFTConfig(
                **common,
                target_modules=_target(model, method.target),
                oft_block_size=method.block_size,
                module_dropout=method.dropout,
            )
        case Boft():
            return peft.BOFTConfig(
                **common,
                target_modules=_all_linear(model) if method.target == "all-linear" else _target(model, method.target),
                boft_block_size=method.block_size,
                boft_n_butterfly_factor=method.factors,
                boft_dropout=method.dropout,
            )
        case LnTuning():
            return peft.LNTuningConfig(**common, target_modules=_norms(model, method))
        case _:
            return _prompting(model, method, common)


def _prompting(model: Model, method: Prompt | Prefix | PTuning, common: dict[str, Any]) -> PeftConfig:
    import peft

    common |= {"num_virtual_tokens": method.virtual_tokens}
    width = int(model.base.config.get_text_config().hidden_size)
    match method:
        case Prompt():
            # A text is tokenised by the model's own tokenizer, in `prompts.begin`.
            return peft.PromptTuningConfig(**common, prompt_tuning_init="RANDOM")
        case Prefix():
            return peft.PrefixTuningConfig(
                **common,
                prefix_projection=method.projection,
                encoder_hidden_size=method.hidden_size or width,
            )
        case PTuning():
            return peft.PromptEncoderConfig(
                **common,
                encoder_reparameterization_type=method.encoder.upper(),  # pyright: ignore[reportArgumentType]
                encoder_hidden_size=method.hidden_size or width,
                encoder_dropout=method.dropout,
            )


def _lora(model: Model, method: Lora, common: dict[str, Any]) -> PeftConfig:
    from peft import LoraConfig

    _within_width(model, method.rank)
    tied = model.tied
    added = new_ids(Path(model.base.name_or_path or "."))
    moving = method.vocabulary or ("new" if added else "none")
    matrices = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    whole = [*common.pop("modules_to_save", ()), *method.modules_to_save, *(matrices if moving == "all" else ())]
    saves_vocabulary = any("embed" in name or "lm_head" in name for name in whole)
    return LoraConfig(
        **common,
        r=method.rank,
        lora_alpha=method.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=method.dropout,
        target_modules=_target(model, method.target),
        modules_to_save=list(dict.fromkeys(whole)) or None,
        trainable_token_indices=dict.fromkeys(matrices, added) if moving == "new" else None,
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights="gaussian" if method.init == "gaussian" else True,
        ensure_weight_tying=tied and saves_vocabulary,
    )


def _within_width(model: Model, rank: int) -> None:
    """Raises ConfigError for a rank that no layer can have; its matrices would cost more than the layers themselves."""
    layers = [layer for layer in model.base.modules() if isinstance(layer, nn.Linear)]
    most = max((min(layer.in_features, layer.out_features) for layer in layers), default=rank)
    if rank > most:
        raise ConfigError(
            f"rank {rank} is more than the {most} that the widest layer of this model can have",
            where="--lora_rank",
            fix="8 to 64 is usual; --train_type full trains whole layers",
        )


def _target(model: Model, target: str | tuple[str, ...]) -> str | list[str]:
    """PEFT's word for the layers.

    Raises:
        ConfigError: one of several names stands for no layer, which PEFT passes over in silence.
    """
    if isinstance(target, str):
        return target
    if target == ("all-linear",):
        return "all-linear"
    layers = [name for name, _ in model.base.named_modules()]
    astray = [name for name in target if not any(f".{layer}".endswith(f".{name}") for layer in layers)]
    if astray and len(astray) < len(target):  # where none is there, PEFT says so
        hints = {name.rpartition(".")[2] for name, layer in model.base.named_modules() if isinstance(layer, nn.Linear)}
        raise ConfigError(
            f"no layer of this model is called {', '.join(astray)}",
            where="--target_modules",
            fix=f"Its linear layers: {', '.join(sorted(hints))}",
        )
    return list(target)


def _all_linear(model: Model) -> list[str]:
    """The leaf names of all linear layers but the head's, for tuners that PEFT does not look them up for."""
    head = model.head if model.kind.kind == "causal" else None
    learned = [f".{name}." for name in heads.modules(model.base, model.kind)]
    return sorted(
        {
            name.rpartition(".")[2]
            for name, layer in model.base.named_modules()
            if isinstance(layer, nn.Linear) and layer is not head and not any(part in f".{name}." for part in learned)
        }
    )


def _scaled(model: Model, method: Ia3) -> tuple[str | list[str], list[str]]:
    """Layers that IA3 scales, and those of them that are scaled on the way in."""
    from peft.utils import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    if method.target not in ("auto", ("auto",)):
        targets = _target(model, method.target)
        return targets, _among(targets, method.feedforward or ())
    kind = model.base.config.get_text_config().model_type
    targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    if targets is None:
        raise ModelError(
            f"PEFT does not know which layers of a {kind} IA3 scales",
            where="method.target",
            fix=f"Name them: --target_modules {' '.join(_all_linear(model))}",
        )
    known = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, [])
    return list(targets), _among(list(targets), known if method.feedforward is None else method.feedforward)


def _among(targets: str | list[str], feedforward: Sequence[str]) -> list[str]:
    """The layers that IA3 scales on the way in.  Raises ConfigError for one that it does not scale at all."""
    others = [name for name in feedforward if not isinstance(targets, str) and name not in targets]
    if others:
        raise ConfigError(
            f"{others[0]!r} is none of the layers that are scaled: {', '.join(sorted(targets))}",
            where="--feedforward_modules",
            fix="Name some of them, or more with --target_modules",
        )
    return list(feedforward)


def _norms(model: Model, method: LnTuning) -> str | list[str]:
    if method.target not in ("norms", ("norms",)):
        return _target(model, method.target)
    names = [name for name, module in model.base.named_modules() if type(module).__name__.endswith("Norm")]
    if not names:
        raise ModelError("no norm was found in this model", where="method.target", fix="Name the modules")
    return names
