"""Label Studio's JSON: tasks to label, and what annotators made of them.

The format is that of its documentation, "Label Studio JSON format of annotated tasks": a task has `data`,
`annotations` and `predictions`; each of these has a list `result` of regions with `from_name`, `to_name`, `type` and
`value`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast
from xml.sax.saxutils import quoteattr

import orjson

from luthier.base.records import Json

Kind = Literal["choices", "spans", "rating", "pairwise", "text"]
_ANSWER = {"choices": "choices", "taxonomy": "taxonomy", "textarea": "text", "rating": "rating", "number": "number"}
"""Types that give a value to a column, and the key of it."""


@dataclass
class Said:
    """What one annotator said of a task."""

    annotator: str
    values: dict[str, Json] = field(default_factory=dict[str, Json])
    """By the name of the control (`from_name`); spans are lists of {"start", "end", "label", "text"}."""
    ignored: list[str] = field(default_factory=list[str])
    """Types of results that have no place in a row: relations, boxes, ..."""
    ground_truth: bool = False


def is_task(value: Mapping[str, Json]) -> bool:
    """Whether a row is a task of Label Studio's JSON export."""
    return isinstance(value.get("data"), dict) and isinstance(value.get("annotations"), list)


def said_of(task: Mapping[str, Json]) -> list[Said]:
    """The annotations of a task, without those that were cancelled or left empty by skipping."""
    found: list[Said] = []
    for annotation in cast(list[Any], task["annotations"]):
        if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
            known = cast(dict[str, Any], annotation)
            said = Said(_annotator(known.get("completed_by")), ground_truth=bool(known.get("ground_truth")))
            for result in known.get("result") or ():
                _take(said, result)
            found.append(said)
    return found


def _annotator(who: Any) -> str:
    if isinstance(who, dict):
        known = cast(dict[str, Any], who)
        return str(known.get("email") or known.get("id") or "unknown")
    return "unknown" if who is None else str(who)


def _take(said: Said, result: Mapping[str, Any]) -> None:
    kind, name = str(result.get("type", "")), str(result.get("from_name", "label"))
    value: Mapping[str, Any] = result.get("value") or {}
    if kind in ("labels", "hypertextlabels") and isinstance(value.get("start"), int):
        spans = cast(list[Json], said.values.setdefault(name, []))
        for label in value.get("labels") or value.get("hypertextlabels") or ():
            spans.append(
                {"start": value["start"], "end": value["end"], "label": label, "text": str(value.get("text", ""))}
            )
    elif kind == "pairwise":
        said.values[name] = value.get("selected")
    elif kind in _ANSWER and "start" not in value and value.get(_ANSWER[kind]) is not None:
        answer: Any = value[_ANSWER[kind]]
        if kind == "taxonomy":
            answer = [" / ".join(path) for path in answer]
        single = isinstance(answer, list) and len(cast(list[Json], answer)) == 1
        said.values[name] = cast(Json, answer[0] if single else answer)
    else:
        said.ignored.append(kind or "unknown")


def comparable(value: Json) -> Hashable:
    """A value that equal answers share: the order of choices and spans does not count."""
    if isinstance(value, list):
        return orjson.dumps(sorted(value, key=lambda item: orjson.dumps(item))).decode()
    return orjson.dumps(value).decode() if isinstance(value, dict) else value


@dataclass(frozen=True)
class Form:
    """What annotators are asked: the kind of answer, the column of the text, the choices."""

    kind: Kind
    column: str = "text"
    labels: tuple[str, ...] = ()
    other: str | None = None
    """Column of the second text of a pair."""

    def config(self) -> str:
        """The labelling interface, as Label Studio's XML."""
        name = quoteattr(f"${self.column}")
        shown = f'  <Text name="text" value={name}/>'
        match self.kind:
            case "choices":
                choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in self.labels)
                control = f'  <Choices name="label" toName="text" choice="single">\n{choices}\n  </Choices>'
            case "spans":
                labels = "\n".join(f"    <Label value={quoteattr(label)}/>" for label in self.labels)
                control = f'  <Labels name="spans" toName="text">\n{labels}\n  </Labels>'
            case "rating":
                control = '  <Rating name="rating" toName="text" maxRating="5"/>'
            case "pairwise":
                shown += f'\n  <Text name="other" value={quoteattr(f"${self.other}")}/>'
                control = '  <Pairwise name="preferred" toName="text,other"/>'
            case "text":
                control = '  <TextArea name="answer" toName="text" rows="4" maxSubmissions="1"/>'
        return f"<View>\n{shown}\n{control}\n</View>\n"

    def task(self, value: Mapping[str, Json], known: Json) -> dict[str, Json]:
        """A row as a task; what is known of its answer becomes a prediction, which annotators see and correct."""
        results = self._results(value, known)
        made: dict[str, Json] = {"data": dict(value)}
        if results:
            made["predictions"] = [{"model_version": "luthier", "result": results}]
        return made

    def _results(self, value: Mapping[str, Json], known: Json) -> list[Json]:
        if known is None or known == "" or known == []:
            return []
        if self.kind == "spans":
            text = str(value.get(self.column, ""))
            spans = [span for span in cast(list[Json], known) if isinstance(span, dict)]
            return [
                {
                    "from_name": "spans",
                    "to_name": "text",
                    "type": "labels",
                    "value": {
                        "start": span["start"],
                        "end": span["end"],
                        "text": text[cast(int, span["start"]) : cast(int, span["end"])],
                        "labels": [span["label"]],
                    },
                }
                for span in spans
            ]
        answers: dict[str, tuple[str, str, Json]] = {
            "choices": ("label", "choices", known if isinstance(known, list) else [known]),
            "rating": ("rating", "rating", known),
            "text": ("answer", "text", known if isinstance(known, list) else [known]),
            "pairwise": ("preferred", "selected", known),
        }
        name, key, answer = answers[self.kind]
        kind = {"text": "textarea"}.get(self.kind, self.kind)
        return [{"from_name": name, "to_name": "text", "type": kind, "value": {key: answer}}]


def tasks_file(tasks: Sequence[bytes]) -> bytes:
    """Tasks as one JSON array, which is what Label Studio imports."""
    return b"[\n" + b",\n".join(tasks) + b"\n]\n"
