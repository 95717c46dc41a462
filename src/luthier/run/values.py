"""Other tools' words for values of settings: what they are called here, or what to do instead."""

from __future__ import annotations

_ALL_LINEAR = {"ALL": "all-linear", "all": "all-linear", "AUTO": "all-linear", "DEFAULT": "all-linear"}

WORDS: dict[str, dict[str, str]] = {
    "model.dtype": {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "model.attention": dict.fromkeys(("fa2", "flash_attn", "flash_attn_2", "flash_attention_2"), "packed")
    | {"disabled": "eager"},
    "model.quant.method": {"bitsandbytes": "bnb"},
    "quant_method": {
        "bitsandbytes": "bnb",
        "gptqmodel": "gptq",
        "ao": "torchao",
        "compressed-tensors": "llmcompressor",
    },
    "model.quant.bits": {"0": "null"},
    "model.hub": {"modelscope": "ms", "huggingface": "hf"},
    "data.hub": {"modelscope": "ms", "huggingface": "hf"},
    "method.target": _ALL_LINEAR,
    "method.type": {
        "prompt_tuning": "prompt",
        "prefix_tuning": "prefix",
        "p_tuning": "ptuning",
        "ptuning_v1": "ptuning",
        "p_tuning_v2": "prefix",
        "ptuning_v2": "prefix",
        "norm": "ln_tuning",
        "gradual_unfreezing": "gradual",
    },
    "method.start": {"RANDOM": "random", "TEXT": "text", "SAMPLE_VOCAB": "vocabulary"},
    "method.encoder": {"MLP": "mlp", "LSTM": "lstm"},
    "method.init": {"true": "default", "kaiming": "default"} | {f"pissa_niter_{n}": "pissa" for n in (4, 8, 16, 32)},
    "objective.type": {
        "pt": "pretrain",
        "causal_lm": "sft",
        "classification": "seq_cls",
        "ner": "token_cls",
        "gkd": "distill",
    },
    "objective.loss": {
        "cosine_similarity": "cosine",
        "pointwise_reranker": "pointwise",
        "listwise_reranker": "listwise",
    },
    "objective.train_on": {"default": "assistant", "last_round": "last"},
    "data.overlong": {"delete": "drop", "right": "truncate"},
    "train.max_steps": {"-1": "null"},
    "train.shard": dict.fromkeys(("full_shard", "full_shard auto_wrap", "fsdp2"), "full") | {"no_shard": "none"},
    "optim.name": {
        "adamw_torch": "adamw",
        "adamw_torch_fused": "adamw",
        "adamw_hf": "adamw",
        "adamw_bnb_8bit": "adamw_8bit",
        "paged_adamw_32bit": "paged_adamw",
    },
    "optim.schedule": {
        "constant_with_warmup": "constant",
        "cosine_with_min_lr": "cosine",
        "cosine_warmup_with_min_lr": "cosine",
    },
}
"""Other tools' words for our values, by path."""

_NO_BOTTLENECKS = "PEFT has no bottleneck adapters, and adapters here are PEFT's; lora and ia3 are nearest"
_A_NUMBER = "A number for each text is learned by seq_cls, of rows with Input and Reward, or text and label"

INSTEAD: dict[str, dict[str, str]] = {
    "method.type": {
        "qlora": "QLoRA is --train_type lora --quant_bits 4",
        "dora": "DoRA is --train_type lora --use_dora true",
        "rslora": "rsLoRA is --train_type lora --use_rslora true",
        "pissa": "PiSSA is --train_type lora --init_weights pissa",
        "loraplus": "LoRA+ is --train_type lora --lorap_lr_ratio 16",
        "neftune": "NEFTune goes with any of them: --neftune_noise_alpha 5",
    }
    | dict.fromkeys(("adapter", "adapters", "bottleneck", "houlsby", "pfeiffer"), _NO_BOTTLENECKS),
    "objective.type": {
        **dict.fromkeys(("regression", "reward", "rm"), _A_NUMBER),
        **dict.fromkeys(("dpo", "orpo", "simpo", "cpo", "kto", "rlhf"), "Preference training is not there yet"),
        **dict.fromkeys(("ppo", "grpo", "rloo"), "RL is not there yet"),
    },
}
"""What to do for other tools' words that no value of ours stands for, by path."""
