"""The files by which sentence-transformers knows how a model makes vectors of texts."""

from __future__ import annotations

from pathlib import Path

import orjson

from luthier.base.errors import ModelError
from luthier.model.folder import read_json
from luthier.model.heads import Pooling

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_SHORT: dict[str, Pooling] = {"mean": "mean", "cls": "first", "lasttoken": "last"}


def pooling_of(folder: Path) -> Pooling | None:
    """What a model's own files say of its pooling; None where they say nothing.

    Raises:
        ModelError: they ask for a pooling that is not known here.
    """
    found = sorted(folder.glob("*_Pooling/config.json"))
    if not found:
        return None
    config = read_json(found[0])
    mode = config.get("pooling_mode")
    wanted = [mode] if isinstance(mode, str) else list(mode or [])
    wanted += [name for name in config if name.startswith("pooling_mode_") and config[name] is True]
    known: list[Pooling] = [known[name] for name in wanted for known in (_SHORT, _MODES) if name in known]
    if len(wanted) != 1 or len(known) != 1:
        raise ModelError(
            f"vectors are made by {', '.join(wanted) or 'nothing'}, which cannot be trained",
            where=str(found[0]),
            fix="Say how with --pooling mean, cls or last",
        )
    return known[0]


def files(
    pooling: Pooling, *, width: int, max_length: int, prompts: dict[str, str], normalise: bool = True
) -> dict[str, str]:
    """Names and contents of the files that make a folder with a transformers model one of sentence-transformers.

    Args:
        width: of a vector.
        prompts: text in front of what is embedded, by the name of its kind.
    """
    names = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": f"{number}_{name}" if number else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for number, name in enumerate(names)
    ]
    modes = {name: mode == pooling for name, mode in _MODES.items()}
    return {
        "modules.json": _text(modules),
        "1_Pooling/config.json": _text({"word_embedding_dimension": width, **modes}),
        "sentence_bert_config.json": _text({"max_seq_length": max_length, "do_lower_case": False}),
        "config_sentence_transformers.json": _text(
            {"prompts": {name: prompt for name, prompt in prompts.items() if prompt}, "similarity_fn_name": "cosine"}
        ),
    }


def _text(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
