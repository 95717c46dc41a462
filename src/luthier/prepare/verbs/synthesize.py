"""Write new instruction rows from seed examples through an endpoint, and keep those that say something new."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.frame import Frame
from luthier.prepare.instructing import Pool, Rules, Task, fault, request, schema, task_of, tasks_in
from luthier.prepare.parcel import Batch, Parcel, packed
from luthier.prepare.report import Report, Table
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.words import counted

_MOST_SEEDS = 20_000
_AT_ONCE = 1000


class SynthesizeConfig(VerbConfig):
    """How many rows are wanted, how they are asked for, and which ones are kept."""

    rows: int = Field(default=100, ge=1)
    """New rows wanted."""
    max_requests: int | None = Field(default=None, ge=1)
    """Ask no more often than this. Unset: four times what would do if everything were kept."""
    examples: int = Field(default=8, ge=1, le=50)
    """Examples in a request; up to a quarter of them are rows made before."""
    per_request: int = Field(default=5, ge=1, le=50)
    """New tasks wanted from each request."""
    topics: tuple[str, ...] = ()
    """Topics to ask for, in turn."""
    similarity: float = Field(default=0.7, gt=0, le=1)
    """A task with this ROUGE-L to a seed or a kept one says nothing new."""
    min_words: int = Field(default=3, ge=1)
    """Shortest instruction, in words or Chinese characters."""
    max_words: int = Field(default=150, ge=1)
    """Longest instruction."""
    min_answer_words: int = Field(default=1, ge=0)
    """Shortest answer."""
    max_answer_words: int = Field(default=2000, ge=1)
    """Longest answer."""
    shape: Literal["messages", "alpaca"] = "messages"
    """Shape of the new rows."""
    seeds: bool = False
    """Write the seed rows too, first."""
    requests_only: bool = False
    """Ask nothing: write the first requests as lines of OpenAI's batch format, to look at them or to send them."""
    endpoint: EndpointConfig = EndpointConfig(temperature=0.7, max_tokens=4096)
    """The endpoint that writes."""

    @model_validator(mode="after")
    def _possible(self) -> SynthesizeConfig:
        if not self.requests_only:
            self.endpoint.require()
        if self.min_words > self.max_words or self.min_answer_words > self.max_answer_words:
            raise ValueError("the shortest must not be longer than the longest")
        return self

    @property
    def budget(self) -> int:
        """Most requests."""
        return self.max_requests or 4 * -(-self.rows // self.per_request)


@dataclass(frozen=True)
class _Seeds:
    """The examples among the rows, as lines; and the rows themselves, when they are wanted."""

    keep: bool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        for item in batch.items:
            task = task_of(item.value)
            if task is None:
                parcel.tally.count("no_example")
                parcel.tally.example("no_example", item.where, row=item.json().decode())
            else:
                line = packed([task.instruction, task.input, task.output])
                parcel.keep_line(item.file, item.line, line, "seed")
            if self.keep:
                parcel.keep(item)
        return parcel


def synthesize(rows: Frame, config: SynthesizeConfig, job: Job) -> Outcome:
    """Write new rows.

    Raises:
        DataError: code `no_seeds` when no row is an example.
        RunError: code `endpoint_failed`; what was answered is kept, and the same command goes on from there.
    """
    report = Report()
    seeds: list[Task] = []
    for parcel in rows.scan(_Seeds(False), "Reading seeds"):
        seeds += [Task(*seed) for seed in parcel.values("seed")[: _MOST_SEEDS - len(seeds)]]
        report.tally.add(parcel.tally)
    if not seeds:
        where = ", ".join(source.name for source in rows.sources)
        fix = "Give rows with a question and an answer"
        raise DataError("no row is an example of a task", where=where, code="no_seeds", fix=fix)
    report.summary["seeds"] = len(seeds)
    if config.requests_only:
        return Outcome(report, _requests(seeds, config, job))
    made = _write(seeds, config, job, report)
    report.summary["made"] = len(made)
    if len(made) < config.rows:
        what = f"{len(made)} of {config.rows} rows were made in {config.budget} requests"
        report.notes.append(f"{what}: raise max_requests or similarity, or give more seeds and topics")
    _describe(report, seeds, made)
    return Outcome(report, _rows(rows, made, config))


def _chats(seeds: list[Task], made: list[Task], number: int, count: int, config: SynthesizeConfig, seed: int):
    """`count` requests from number `number` on, each with examples of its own."""
    for at in range(number, number + count):
        generator = np.random.default_rng([seed, 3, at])
        new = min(len(made), config.examples // 4)
        old = min(len(seeds), config.examples - new)
        shown = [seeds[i] for i in generator.choice(len(seeds), old, replace=False)]
        shown += [made[i] for i in generator.choice(len(made), new, replace=False)] if new else []
        topic = config.topics[at % len(config.topics)] if config.topics else None
        yield request(shown, config.per_request, topic)


def _requests(seeds: list[Task], config: SynthesizeConfig, job: Job) -> Iterator[Parcel]:
    wanted = -(-config.rows // config.per_request)
    wish = {"name": "answer", "strict": True, "schema": schema(config.per_request)}
    parcel = Parcel()
    for number, chat in enumerate(_chats(seeds, [], 0, wanted, config, job.seed)):
        body: dict[str, Any] = {"model": config.endpoint.model, "messages": chat}
        body |= {"temperature": config.endpoint.temperature, "max_tokens": config.endpoint.max_tokens}
        body["response_format"] = {"type": "json_schema", "json_schema": wish}
        line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        parcel.keep_line("", 0, packed(line))
    yield parcel.pack(origins=job.origins is not None)


def _write(seeds: list[Task], config: SynthesizeConfig, job: Job, report: Report) -> list[Task]:
    """Ask in rounds, each with examples from the one before, until there are enough rows or no requests left."""
    ask = job.tool("ask")
    pool = Pool(config.similarity)
    for task in seeds:
        pool.add(task)
    rules = Rules(config.min_words, config.max_words, config.min_answer_words, config.max_answer_words)
    made: list[Task] = []
    asked = 0
    tally = report.tally
    with job.console.progress("Writing tasks", config.rows) as bar:
        while len(made) < config.rows and asked < config.budget:
            missing = -(-(config.rows - len(made)) // config.per_request)
            count = min(config.budget - asked, max(1, min(missing, config.endpoint.concurrency)))
            chats = list(_chats(seeds, made, asked, count, config, job.seed))
            asked += count
            for answer in ask(chats, schema(config.per_request)):
                found = tasks_in(answer)
                if not found:
                    tally.count("no_answer")
                for task in found:
                    why = fault(task, rules) or ("nothing_new" if pool.nearest(task) else None)
                    if why is None and len(made) >= config.rows:
                        why = "beyond_what_was_wanted"
                    if why:
                        tally.count(why)
                        _example(report, why, task)
                        continue
                    pool.add(task)
                    made.append(task)
                    bar.advance()
    report.summary["requests"] = asked
    return made


def _example(report: Report, why: str, task: Task) -> None:
    kept = report.tally.examples.setdefault(why, [])
    if len(kept) < 5:
        kept.append({"instruction": task.instruction[:300], "output": task.output[:300]})


def _rows(rows: Frame, made: list[Task], config: SynthesizeConfig) -> Iterator[Parcel]:
    if config.seeds:
        for parcel in rows.scan(_Seeds(True), "Writing seeds"):
            parcel.tally.counts.clear()  # they were counted when the seeds were read
            parcel.tally.examples.clear()
            for kept in (parcel.lines, parcel.written, parcel.placed):
                kept.pop("seed", None)
            yield parcel
    for start in range(0, len(made), _AT_ONCE):
        parcel = Parcel()
        for number, task in enumerate(made[start : start + _AT_ONCE], start + 1):
            parcel.keep_line("synthesized", number, packed(_row(task, config.shape)))
        yield parcel.pack(origins=True)


def _row(task: Task, shape: str) -> dict[str, Json]:
    if shape == "alpaca":
        return {"instruction": task.instruction, "input": task.input, "output": task.output}
    return {
        "messages": [{"role": "user", "content": task.text}, {"role": "assistant", "content": task.output}],
    }


def _describe(report: Report, seeds: list[Task], made: list[Task]) -> None:
    rows: list[dict[str, Json]] = []
    for name, tasks in (("seeds", seeds), ("new", made)):
        if tasks:
            sizes = [len(counted(task.instruction)) for task in tasks]
            answers = [len(counted(task.output)) for task in tasks]
            rows.append(
                {
                    "set": name,
                    "rows": len(tasks),
                    "median words of instruction": float(np.median(sizes)),
                    "median words of answer": float(np.median(answers)),
                    "share with input": round(sum(bool(task.input) for task in tasks) / len(tasks), 3),
                }
            )
    report.tables.append(Table("Tasks", rows))


VERB = Verb(
    name="synthesize",
    config=SynthesizeConfig,
    run=synthesize,
    about="Write new instruction rows from seed examples through an endpoint, and keep those that say something new.",
    examples=(
        "luthier data synthesize seeds.jsonl --rows 500 --base_url http://127.0.0.1:8000/v1 --endpoint.model qwen "
        "--output new.jsonl",
        "luthier data synthesize seeds.jsonl --topics law medicine cooking --similarity 0.6 --endpoint.model qwen "
        "--output new.jsonl",
    ),
    tools=("ask",),
    sample={"requests_only": True, "rows": 20},
)
