"""Records written as rows of a wanted shape.  What a shape cannot hold is named, and nothing is lost in silence.

Reading a written row gives an equal record (but for where it stands); the tests hold this for every pair of shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from luthier.base.records import Json, Judged, Pair, Record, Task
from luthier.prepare.shapes import annotated, chats
from luthier.prepare.shapes.parts import Losses, Row


def write(record: Record, shape: str, losses: Losses) -> Row:
    """A record as a row of a shape.

    Args:
        shape: a key of `SHAPES`.
        losses: receives what the shape has no place for.

    Raises:
        CannotHold: nothing sensible can be written.
    """
    row = SHAPES[shape](record, losses)
    if record.weight != 1.0:
        row["weight"] = record.weight
    return row


def split(record: Record, shape: str, losses: Losses) -> tuple[Record, ...]:
    """The records whose rows say together what one says: the two sides of a preference, each judged for itself."""
    if shape != "kto" or not isinstance(record, Pair):
        return (record,)
    if record.margin is not None:
        losses.append("margin")
    return tuple(
        Judged((*record.prompt, *side), good, record.where, record.tools, record.weight)
        for side, good in ((record.chosen, True), (record.rejected, False))
    )


SHAPES: dict[str, Callable[[Record, Losses], Row]] = {
    "messages": chats.messages,
    "sharegpt": chats.sharegpt,
    "alpaca": chats.alpaca,
    "query-response": chats.query_response,
    "prompt-completion": chats.prompt_completion,
    "text": annotated.text,
    "preference": annotated.preference,
    "openai-preference": annotated.openai_preference,
    "kto": chats.kto,
    "classification": annotated.classification,
    "tagging": annotated.tagging,
    "retrieval": annotated.retrieval,
    "sentence-pair": annotated.sentence_pair,
    "prompt": chats.prompt,
}
"""How each shape is written."""

TASKS: dict[str, Task] = {
    "preference": "preference",
    "openai-preference": "preference",
    "kto": "kto",
    "classification": "classification",
    "tagging": "tagging",
    "retrieval": "similarity",
    "sentence-pair": "similarity",
}
"""The task that a row is read for when its own does not fit the shape: a text with a category can be classified."""


def used_columns(value: Mapping[str, Json]) -> Iterator[str]:
    """Columns of a row that any shape may have read."""
    return (name for name in value if name.lower() in _USED)


_USED = frozenset(
    """messages conversations conversation system tools functions history weight instruction input output query question
    ask response answer prompt completion context instances text content chosen rejected chosen_messages
    rejected_messages rejected_response chosen_response preferred_output non_preferred_output preferred_completion
    non_preferred_completion chosen_score rejected_score score_chosen score_rejected label labels kto_tag tokens tags
    ner_tags pos_tags pos neg pos_scores neg_scores anchor positive positives negative negatives sentence1 sentence2
    text1 text2 sentence_a sentence_b premise hypothesis score similarity similarity_score sentence solution
    ground_truth reference action reward""".split()  # noqa: SIM905  (a list is twenty lines)
)
