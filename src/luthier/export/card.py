"""The model card: what the model is, from what it was made and how, how well it does, and what it cannot.

A card is published, so it holds no secret and no path of the machine it was made on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from luthier.base.markdown import markdown_table
from luthier.base.secrets import redact


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card is made of; everything may be missing but the title."""

    title: str
    base: str = ""
    """The base model's name on a hub, or the name of its folder."""
    made: str = ""
    """How the files were made of what was trained, in a sentence or two."""
    kind: str = "model"
    """What the files are: a whole model, an adapter, a GGUF file."""
    data: Sequence[Mapping[str, object]] = ()
    """Data sets, a row each: name and counts."""
    recipe: Mapping[str, object] = field(default_factory=dict[str, object])
    """Settings that matter, by name."""
    scores: Sequence[Mapping[str, object]] = ()
    """Measurements, a row each."""
    cautions: Sequence[str] = ()
    system: str | None = None
    """The system message it was trained with."""
    usage: str = ""
    """Python or shell lines that open it."""
    version: str = ""


def card(facts: CardFacts) -> str:
    """README.md of a published model: a head for the hubs, then text for people."""
    head: dict[str, object] = {"library_name": "peft" if facts.kind == "an adapter" else "transformers"}
    if facts.kind == "a GGUF file":
        head["library_name"] = "gguf"
    if _is_hub_name(facts.base):
        head["base_model"] = facts.base
    head |= {"pipeline_tag": "text-generation", "tags": ["luthier"]}
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {facts.title}",
        "",
    ]
    of = f", fine-tuned from {facts.base}" if facts.base else ""
    lines += [f"This is {facts.kind}{of}, made with Luthier {facts.version}. {facts.made}".rstrip(), ""]
    sections: dict[str, list[str]] = {
        "Use": ["```python", *facts.usage.splitlines(), "```"] if facts.usage else [],
        "System message": ["Trained with this system message:", "", *_quoted(facts.system)] if facts.system else [],
        "Data": _table(facts.data),
        "Recipe": _table([{"setting": name, "value": value} for name, value in facts.recipe.items()]),
        "Scores": _table(facts.scores),
        "Limits": [f"- {text}" for text in (*facts.cautions, *_ALWAYS)],
    }
    for title, body in sections.items():
        if body:
            lines += [f"## {title}", "", *body, ""]
    return redact(without_paths("\n".join(lines)))


_ALWAYS = (
    "It knows what its base model and its data taught it, with their errors and biases; it was not tested for safety.",
    "Licences of the base model and of the data apply; look at them before you use it.",
)


def without_paths(text: str) -> str:
    """`text` with every absolute path of this machine cut down to its last part."""
    return re.sub(r"(?<![\w:/.~])(?:~|/[\w.+@-]+)(?:/[\w.+@ -]*[\w.+@-])+/?", lambda found: Path(found[0]).name, text)


def public_name(named: str) -> str:
    """A model's or data set's name as it may be published: a hub id as it is, of a path its last part."""
    bare = named.removeprefix("hf::").removeprefix("ms::")
    path, _, rest = bare.partition("#")
    if _is_hub_name(path) and not Path(path).exists():
        return bare
    return Path(path).expanduser().name + (f"#{rest}" if rest else "")


def _is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) is not None


def _quoted(text: str) -> list[str]:
    return [f"> {line}" for line in text.splitlines()]


def _table(rows: Sequence[Mapping[str, object]]) -> list[str]:
    if not rows:
        return []
    return markdown_table([*rows[0]], ([_cell(value) for value in row.values()] for row in rows))


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
