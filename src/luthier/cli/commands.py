"""Words that people know as commands, from other tools or by their meaning, and the command that does it here."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.base.config import nearest
from luthier.prepare import verbs

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
}
_REINFORCED = {"rlhf", "dpo", "orpo", "kto", "cpo", "simpo", "rm", "reward", "ppo", "grpo", "rloo", "rollout"}


def instead_of(word: str, names: Sequence[str]) -> str:
    """What to do in place of a command that there is not.

    Args:
        names: the commands there are.
    """
    word = word.removeprefix("--")
    meant = word.lower()
    if meant in _REINFORCED:
        return _NOT_YET
    known = f"data {meant}" if meant in verbs.names() else _MEANT.get(meant)
    hint = f"luthier {known}" if known else nearest(word, names)
    return f"Did you mean {hint!r}?" if hint else "luthier -h lists the commands"
