"""Words that people know as commands, from other tools or by their meaning, and the command that does it here."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.base.config import nearest

_NOT_YET = "Preference training and RL are not there yet. luthier -h lists the commands"
_MEANT = {
    **dict.fromkeys(("chat", "run", "predict", "generate", "batch", "answer"), "infer"),
    **dict.fromkeys(("api", "serve", "server", "openai"), "deploy"),
    **dict.fromkeys(("app", "ui", "web-ui", "web_ui", "webui", "webchat", "web", "gui"), "studio"),
    **dict.fromkeys(("merge", "merge-lora", "merge_lora", "quantize", "quantise", "quant"), "export"),
    **dict.fromkeys(("finetune", "fine-tune", "fine_tune", "finetuning", "tune", "lora", "qlora"), "sft"),
    **dict.fromkeys(("evaluate", "evaluation", "test", "benchmark"), "eval"),
    **dict.fromkeys(("env", "check", "version", "info"), "doctor"),
    **dict.fromkeys(("prepare", "dataset", "preprocess"), "data"),
    **dict.fromkeys(("hpo", "tuning", "sweep"), "search"),
    **dict.fromkeys(
        (
            *("augment", "balance", "clean", "convert", "decontaminate", "dedup", "features", "inspect", "label"),
            *("mix", "select", "split", "synthesize"),
        ),
        "data {}",
    ),
}
_REINFORCED = {"rlhf", "dpo", "orpo", "kto", "cpo", "simpo", "rm", "reward", "ppo", "grpo", "rloo", "rollout"}


def instead_of(word: str, names: Sequence[str]) -> str:
    """What to do in place of a command that there is not.

    Args:
        names: the commands there are.
    """
    word = word.removeprefix("--")
    if word.lower() in _REINFORCED:
        return _NOT_YET
    known = _MEANT.get(word.lower())
    hint = known.format(word.lower()) if known else nearest(word, names)
    if hint is None:
        return "luthier -h lists the commands"
    return f"Did you mean {f'luthier {hint}' if known else hint!r}?"
