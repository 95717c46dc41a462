"""Secrets, known by their names and shapes: hidden in what is written down, refused in settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

SECRET_NAME = re.compile(r"(^|[._-])(api_?key|key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
SECRET_TEXT = re.compile(r"(?<=://)[^/\s@]+(?=@)|\b(?:hf_|sk-|ghp_|xox[abp]-)[A-Za-z0-9_-]{12,}")

# What is refused must not be an ordinary word: a data set may be called sk-learn-questions.
_CERTAIN = re.compile(r"://[^/\s@:]+:[^/\s@]+@|\b(?:hf_|ghp_)[A-Za-z0-9]{30,}|\bsk-[A-Za-z0-9_-]{40,}")
_RANDOM = re.compile(r"(?=.*\d)\S{16,}")


def redact(text: str) -> str:
    """`text` without what must never be written down.

    Hidden are credentials inside URLs, the well-known token shapes, and the value of every environment variable that
    is named like a secret.
    """
    for value in _of_environment(8):
        text = text.replace(value, "***")
    return SECRET_TEXT.sub("***", text)


def secrets_in(tree: Mapping[str, Any]) -> list[str]:
    """Dotted names of the settings that hold a secret: by its shape, by a name such as api_key, or by the environment.

    Only what is surely one counts, because settings with secrets are refused.
    """
    known = list(_of_environment(12))
    return [name for name, text in _texts(tree, "") if _is_secret(name, text, known)]


def _is_secret(name: str, text: str, known: list[str]) -> bool:
    named = SECRET_NAME.search(name) is not None and _RANDOM.fullmatch(text) is not None
    return named or _CERTAIN.search(text) is not None or any(value in text for value in known)


def _of_environment(length: int) -> Iterator[str]:
    """Values of at least this length whose variable is named like a secret."""
    return (value for name, value in os.environ.items() if len(value) >= length and SECRET_NAME.search(name))


def _texts(value: object, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, below in cast(Mapping[str, object], value).items():
            yield from _texts(below, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for below in cast(list[object], value):
            yield from _texts(below, name)
