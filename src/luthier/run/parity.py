"""One model, many ways to run it: do they read the same tokens and give the same answers?

Rows of a run are rendered as training, infer, deploy and plain transformers render them, and must begin with the same
token ids.  Then every engine answers greedily, and what it thought of each of its tokens is held against the adapter as
it is used here.  A difference is named: the row, the place, the two tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Protocol, cast

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from luthier.base.records import Chat, Json, Message
from luthier.data.render import Renderer
from luthier.generate.config import SamplingConfig
from luthier.generate.request import Piece, Request, Score
from luthier.serve.asking import chat_prompt
from luthier.serve.voices import Voice

Ids = tuple[int, ...]


class Answering(Protocol):
    """An engine, as it is asked here."""

    def pieces(self, request: Request) -> Iterator[Piece]:
        """The answer to one request."""
        ...


@dataclass(frozen=True, slots=True)
class Question:
    """A chat up to its last answer, as one who asks has it."""

    where: str
    chat: Chat
    asked: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Spoken:
    """A greedy answer: its tokens, and the log-probability of each."""

    ids: Ids
    scores: tuple[float, ...]


@dataclass(slots=True)
class Agreement:
    """How one engine compares with the reference."""

    engine: str
    exact: bool
    """Whether it should give the same numbers; rounded weights cannot."""
    same: int = 0
    answers: int = 0
    largest: float = 0.0
    mean: float = 0.0
    """Differences of log-probabilities over the tokens that both chose."""
    differences: list[str] = field(default_factory=list[str])
    failed: bool = False


@dataclass(slots=True)
class Prompts:
    """The prompts, and how often each way of rendering gives them."""

    ids: list[Ids] = field(default_factory=list[Ids])
    same: dict[str, int] = field(default_factory=dict[str, int])
    differences: list[str] = field(default_factory=list[str])
    failed: bool = False


def questions(records: Sequence[object]) -> list[Question]:
    """The chats that end with an answer."""
    chats = [record for record in records if isinstance(record, Chat) and record.messages[-1].role == "assistant"]
    return [Question(f"{chat.where}", chat, chat.messages[:-1]) for chat in chats if len(chat.messages) > 1]


def compare_prompts(
    asked: Sequence[Question], training: Renderer, infer: Renderer, system: str | None, artefact: str
) -> Prompts:
    """Render every question in each way.  Plain transformers may differ, which is told and is no failure."""
    found = Prompts()
    plain = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(artefact))
    for question in asked:
        trained: list[int] = training.chat(question.chat, train_on="last").ids.tolist()
        ways: dict[str, Ids] = {
            "infer": tuple(infer.prompt(question.asked, question.chat.tools)),
            "deploy": chat_prompt(Voice(infer, system), *_as_sent(question)),
            "transformers": _by_transformers(plain, question),
        }
        found.ids.append(ways["infer"])
        for way, ids in ways.items():
            agrees = tuple(trained[: len(ids)]) == ids
            found.same[way] = found.same.get(way, 0) + agrees
            if not agrees:
                found.differences.append(f"{way}: {question.where}: {_first_difference(trained, ids, infer)}")
                found.failed |= way != "transformers"
    return found


def _as_sent(question: Question) -> tuple[list[Any], list[Any] | None]:
    """The messages as an OpenAI client sends them."""
    messages: list[dict[str, Json]] = []
    for message in question.asked:
        sent: dict[str, Json] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            sent["tool_calls"] = [dict(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            sent["tool_call_id"] = message.tool_call_id
        messages.append(sent)
    return messages, [dict(tool) for tool in question.chat.tools] or None


def _by_transformers(plain: PreTrainedTokenizerFast, question: Question) -> Ids:
    messages, tools = _as_sent(question)
    text = plain.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    return tuple(cast(list[int], plain(cast(str, text), add_special_tokens=False)["input_ids"]))


def _first_difference(left: Sequence[int], right: Sequence[int], renderer: Renderer) -> str:
    at = next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    shown = [repr(str(renderer.tokenizer.decode(list(side[at : at + 1])))) for side in (left, right)]
    return f"token {at} is {shown[0]} in training and {shown[1]} here"


def answers(engine: Answering, prompts: Sequence[Ids], most: int) -> list[Spoken]:
    """The engine's greedy answers."""
    found: list[Spoken] = []
    for prompt in prompts:
        request = Request(prompt, SamplingConfig(max_new_tokens=most, temperature=0.0), logprobs=0)
        scores: list[Score] = [score for piece in engine.pieces(request) for score in piece.scores]
        found.append(Spoken(tuple(score.token for score in scores), tuple(score.logprob for score in scores)))
    return found


def compare_answers(
    name: str,
    reference: Sequence[Spoken],
    other: Sequence[Spoken],
    tokenizer: PreTrainedTokenizerFast,
    *,
    exact: bool,
    tolerance: float,
) -> Agreement:
    """Hold an engine's answers against the reference's.

    A different token counts where the two engines disagree about it by more than the tolerance; nearer than that, the
    choice was a tie.  Rounded weights are judged by the mean difference alone.
    """
    found = Agreement(name, exact, answers=len(reference))
    gaps: list[float] = []
    for row, (left, right) in enumerate(zip(reference, other, strict=True)):
        common = next(
            (n for n, (a, b) in enumerate(zip(left.ids, right.ids, strict=False)) if a != b),
            min(len(left.ids), len(right.ids)),
        )
        gaps += [abs(a - b) for a, b in zip(left.scores[:common], right.scores[:common], strict=True)]
        if left.ids == right.ids:
            found.same += 1
            continue
        pair = [_word(spoken, common, tokenizer) for spoken in (left, right)]
        sure = [spoken.scores[common] if common < len(spoken.ids) else 0.0 for spoken in (left, right)]
        tie = abs(sure[0] - sure[1]) <= tolerance
        what = f"row {row + 1}, token {common}: {pair[0]} ({sure[0]:.4f}) against {pair[1]} ({sure[1]:.4f})"
        found.differences.append(what + (", a tie" if tie else ""))
        found.failed |= exact and not tie
    found.largest, found.mean = max(gaps, default=0.0), fmean(gaps) if gaps else 0.0
    found.failed |= (found.largest if exact else found.mean) > tolerance
    return found


def _word(spoken: Spoken, at: int, tokenizer: PreTrainedTokenizerFast) -> str:
    return repr(str(tokenizer.decode([spoken.ids[at]]))) if at < len(spoken.ids) else "the end"


def as_json(prompts: Prompts, agreements: Sequence[Agreement]) -> Mapping[str, Json]:
    """The whole report."""
    rendered: dict[str, Json] = {
        "rows": len(prompts.ids),
        "same": dict(prompts.same),
        "differences": list(prompts.differences),
        "failed": prompts.failed,
    }
    return {"prompts": rendered, "engines": [asdict(agreement) for agreement in agreements]}
