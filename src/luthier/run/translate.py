"""How words of another tool's flag become words of ours, where the two differ.

A known name either means a setting here, changes nothing (and says why), or is refused (and says what to use
instead); `familiar.py` lists the names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.data.bundled import BUNDLED


@dataclass
class Meant:
    """What one familiar flag sets: words by dotted path, still unchecked."""

    values: dict[str, list[str]]
    notes: list[str] = field(default_factory=list[str])


Translate = Callable[[str, list[str]], Meant]
"""(flag, words) -> what they mean."""


@dataclass(frozen=True)
class Means:
    """The flag sets `path`.  `translate` rewrites its words when they differ from ours; `commas` splits them; `beside`
    is a setting that commands have where the name is meant."""

    path: str
    translate: Translate | None = None
    commas: bool = False
    beside: str = ""

    def read(self, flag: str, words: list[str]) -> Meant:
        """What the flag sets."""
        if self.translate:
            return self.translate(flag, words)
        return Meant({self.path: split_commas(words) if self.commas else words})


@dataclass(frozen=True)
class Ignored:
    """The flag is accepted and changes nothing."""

    why: str


@dataclass(frozen=True)
class Refused:
    """The flag cannot be honoured; with the value `unless` it asks for nothing and passes."""

    what: str
    fix: str | None = None
    unless: str | None = None


Familiar = Means | Ignored | Refused


def _truth(flag: str, words: list[str]) -> bool:
    word = words[0].lower() if len(words) == 1 else "true" if not words else ""
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise ConfigError(f"expected true or false, got {' '.join(words)!r}", where=flag, code="bad_value")


def _number(flag: str, words: list[str]) -> float:
    try:
        number = float(words[0]) if len(words) == 1 else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"expected a number, got {' '.join(words) or 'nothing'!r}", where=flag, code="bad_value")
    return number


def switch(path: str, on: str | None, off: str | None = None) -> Translate:
    """A switch that stands for one value of a setting when on, for another when off; None leaves it alone."""

    def translate(flag: str, words: list[str]) -> Meant:
        value = on if _truth(flag, words) else off
        return Meant({path: [value]} if value is not None else {})

    return translate


def split_commas(words: list[str]) -> list[str]:
    """Lists may be written with commas or spaces; file names and regular expressions are never cut."""
    parts: list[str] = []
    for word in words:
        whole = "," not in word or re.search(r"[({\[]", word) or Path(word).exists()
        parts += [word] if whole else [part.strip() for part in word.split(",") if part.strip()]
    return parts


def use_hf(flag: str, words: list[str]) -> Meant:
    hub = "hf" if _truth(flag, words) else "ms"
    return Meant({"model.hub": [hub], "data.hub": [hub]})


def template(_: str, words: list[str]) -> Meant:
    """A Jinja file or a bundled template is used; another tool's name only stands for what the model brings itself."""
    if words in ([name] for name in BUNDLED):
        return Meant({"model.template": words})
    if len(words) == 1 and (words[0].endswith((".jinja", ".jinja2", ".j2")) or Path(words[0]).is_file()):
        return Meant({"model.template": words})
    return Meant({}, [f"--template {' '.join(words)}: the model's own chat template is used; a Jinja file replaces it"])


def thinking(flag: str, words: list[str]) -> Meant:
    return Meant({"model.template_args": [json.dumps({"enable_thinking": _truth(flag, words)})]})


def frozen_ratio(flag: str, words: list[str]) -> Meant:
    """ms-swift counts the frozen share from the bottom, we the trained share from the top."""
    frozen = _number(flag, words)
    return Meant({"method.ratio": [repr(round(1 - frozen, 6))]} if frozen else {})


def trainable_layers(flag: str, words: list[str]) -> Meant:
    """LLaMA-Factory: n > 0 trains the last n layers, n < 0 the first -n."""
    count = int(_number(flag, words))
    return Meant({"method.last_layers" if count > 0 else "method.first_layers": [str(abs(count))]})


def name_prefixes(_: str, words: list[str]) -> Meant:
    return Meant({"method.pattern": [f"({'|'.join(re.escape(word) for word in words)})"]})


def save_strategy(flag: str, words: list[str]) -> Meant:
    if words == ["no"]:
        return Meant({"save.every": ["null"]})
    if words == ["steps"]:
        return Meant({})
    raise ConfigError("checkpoints are counted in steps", where=flag, fix="Set --save_steps", code="unsupported_flag")


def eval_strategy(flag: str, words: list[str]) -> Meant:
    if words == ["no"]:
        return Meant(
            {}, ["--eval_strategy no: without validation data nothing is evaluated; with it, evaluation stays on"]
        )
    if words == ["steps"]:
        return Meant({})
    raise ConfigError("evaluations are counted in steps", where=flag, fix="Set --eval_steps", code="unsupported_flag")


def schedule_options(flag: str, words: list[str]) -> Meant:
    try:
        options = json.loads(" ".join(words))
    except json.JSONDecodeError as error:
        raise ConfigError("expected a JSON object", where=flag, code="bad_value") from error
    if not isinstance(options, dict) or set(options) - {"min_lr_rate"}:
        raise ConfigError(
            "only min_lr_rate, the floor as a share of the peak, can be given here", where=flag, code="unsupported_flag"
        )
    return Meant({"optim.min_ratio": [str(options["min_lr_rate"])]} if options else {})


def best_metric(_: str, words: list[str]) -> Meant:
    return Meant({"eval.metric": [word.removeprefix("eval_") for word in words]})


def tasks(flag: str, words: list[str]) -> Meant:
    """`name=file[,file] name=file` -> the tasks by name, each with its training sets."""
    named = {name: {"datasets": files} for name, files in _named_sets(flag, words).items()}
    return Meant({"objective.tasks": [json.dumps(named)]})


def stages(flag: str, words: list[str]) -> Meant:
    """`name=file[,file] name=file` -> the stages by name, each with its training sets; JSON is taken as it is."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        return Meant({"stages": words})
    named = {name: {"data": {"datasets": files}} for name, files in _named_sets(flag, words).items()}
    return Meant({"stages": [json.dumps(named)]})


def _named_sets(flag: str, words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        name, equals, files = word.partition("=")
        if not (name and equals and files):
            raise ConfigError(f"expected NAME=DATA, got {word!r}", where=flag, code="bad_value")
        found.setdefault(name, []).extend(files.split(","))
    return found
