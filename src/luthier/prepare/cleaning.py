"""What cleaning does to rows: the settings, and the work on one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Literal

from pydantic import Field, field_validator

from luthier.base.config import nearest
from luthier.prepare.classical import Classical
from luthier.prepare.config import VerbConfig
from luthier.prepare.gaps import Rule
from luthier.prepare.language import identify
from luthier.prepare.markup import LINE_RULES, MARKUP_SIGN, has_markup, strip_markup
from luthier.prepare.mend import Chinese, Form, Repair, Space, Width, is_damaged, repairs
from luthier.prepare.parcel import Batch, Item, Parcel, Value
from luthier.prepare.personal import KINDS, Kind
from luthier.prepare.quality import PAGE_RULES, RULES, SETS, read_bad_words, reasons
from luthier.prepare.rewriting import Rewriting
from luthier.prepare.scripts import is_chinese, words
from luthier.prepare.values import Bounds, gaps
from luthier.prepare.view import text_of, text_of_all

CHANGED = "changed_rows"
"""Count of rows that were changed."""


class CleanConfig(VerbConfig):
    """Cleaning.  What repairs without loss is on; what takes something away is asked for."""

    encoding: bool = True
    """Turn back text that was decoded wrongly (mojibake): UTF-8 or GB 2312 read as something else."""
    unicode: Form = "nfc"
    """Unicode normal form; nfkc also replaces ligatures, superscripts and all full-width characters, Chinese
    punctuation included."""
    controls: bool = True
    """Remove control characters, terminal escapes, zero-width and other invisible characters."""
    whitespace: Space = "trim"
    """trim: no white space at line ends and around texts, one kind of line break, at most one blank line. collapse:
    also a single space for every run, which spoils code and tables."""
    html: bool = False
    """Take the text out of HTML and resolve entities; code between ``` fences stays."""
    width: Width = "keep"
    """half: full-width letters and digits become usual ones. chinese: and punctuation beside Chinese becomes
    full-width."""
    chinese: Chinese = "keep"
    """Convert between simplified and traditional characters; taiwan also uses its vocabulary."""
    mask: tuple[Kind | Literal["all"], ...] = ()
    """Personal data to mask: email, phone, id_number, card, ip, url, secret, or all."""
    mask_text: str = "<{kind}>"
    """What stands in its place; {kind} becomes EMAIL, PHONE and so on."""
    quality: tuple[str, ...] = ()
    """Rules of quality: c4, gopher, or single rules of them by name."""
    quality_except: tuple[str, ...] = ()
    """Rules that `quality` names and that are left out all the same."""
    bad_words: str | None = None
    """File with words, one a line, for the rule c4_bad_words."""
    damaged: Literal["keep", "drop"] = "keep"
    """Whether rows with replacement characters or 锟斤拷, which nothing can repair, stay."""
    torn_tags: Literal["keep", "drop"] = "keep"
    """Whether rows stay whose tags break their scheme: BIO where I-X follows no X, BIOES, BMES and BILOU also where an
    entity has no end."""
    languages: tuple[str, ...] = ()
    """Keep rows in these languages only: en, zh, ..."""
    language_confidence: float = Field(default=0.5, ge=0.0, le=1.0)
    """How sure the guess of the language must be, 0 to 1."""
    min_characters: int | None = Field(default=None, ge=0)
    """Drop rows whose text is shorter."""
    max_characters: int | None = Field(default=None, ge=1)
    """Drop rows whose text is longer."""
    min_words: int | None = Field(default=None, ge=0)
    """Drop rows with fewer words; Chinese counts characters."""
    max_words: int | None = Field(default=None, ge=1)
    """Drop rows with more words; Chinese counts characters."""
    missing: Literal["keep", "drop", "fill"] = "keep"
    """What happens to missing values: null, empty, n/a, none, 无 and the like."""
    missing_columns: tuple[str, ...] = ()
    """Columns that must have a value. Unset: with drop, every text of a row."""
    fill_with: str = "median"
    """What fills a gap: mean, median or mode of the column, or any other text as it stands."""
    outliers: tuple[str, ...] = ()
    """Numeric columns whose outliers are dropped or clipped; `characters` is the length of a row's text."""
    outlier_rule: Rule = "iqr"
    """What an outlier is: more than 1.5 quartile ranges beyond the quartiles, or 3 standard deviations off the mean."""
    outlier_factor: float | None = Field(default=None, gt=0.0)
    """Instead of 1.5 or 3."""
    outlier_action: Literal["drop", "clip"] = "drop"
    """clip puts the nearest usual value in its place."""
    lowercase: bool = False
    """For classical pipelines: lower case."""
    segment: bool = False
    """For classical pipelines: Chinese words with spaces between them (jieba)."""
    remove_punctuation: bool = False
    """For classical pipelines: no punctuation."""
    remove_stop_words: bool = False
    """For classical pipelines: no stop words, English ones of scikit-learn and Chinese ones."""
    stop_word_file: str | None = None
    """File with other stop words, one a line."""

    @field_validator("quality", "quality_except")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = (*SETS, *sorted(RULES))
        for name in names:
            if name not in known:
                raise ValueError(f"there is no rule {name!r}; did you mean {nearest(name, known) or 'c4'!r}?")
        return names

    def limits(self) -> tuple[int | None, int | None, int | None, int | None]:
        """Fewest and most characters, fewest and most words."""
        return self.min_characters, self.max_characters, self.min_words, self.max_words

    @cached_property
    def limited(self) -> bool:
        """Whether a length is asked for."""
        return any(limit is not None for limit in self.limits())

    @cached_property
    def looks_at_rows(self) -> bool:
        """Whether a rule of damage, length or language may refuse a row."""
        return self.limited or bool(self.languages) or self.damaged == "drop"


@dataclass(frozen=True)
class Cleaning:
    """The work on a batch."""

    config: CleanConfig
    bounds: Bounds

    def __call__(self, batch: Batch) -> Parcel:
        parcel = Parcel()
        config, asked = self.config, page_rules(self.config)
        whole = list(self._whole(batch.items, parcel))
        items, values = [item for item, _ in whole], [value for _, value in whole]
        kept: list[tuple[Item, Value]] = []
        for item, (value, emptied) in zip(items, rewriting(config).applied(values, items, parcel.tally), strict=True):
            if emptied:
                parcel.drop(item, "emptied", field=emptied)
            elif not (config.looks_at_rows and self._refused(item, value, parcel)):
                kept.append((item, value))
        bad_words = read_bad_words(config.bad_words) if config.bad_words else None
        why = reasons(text_of_all([value for _, value in kept]), asked, bad_words) if asked else ()
        alike: list[Item] = []  # rows in a row that stay as they are
        for (item, value), reason in zip_longest(kept, why):
            if not reason and (value is item.value or value == item.value):
                alike.append(item)
                continue
            parcel.keep_all(alike)
            alike.clear()
            if reason:
                parcel.drop(item, reason)
            else:
                parcel.tally.count(CHANGED)
                parcel.keep(item, value)
        parcel.keep_all(alike)
        return parcel

    def _whole(self, items: Sequence[Item], parcel: Parcel) -> Iterator[tuple[Item, Value]]:
        """The rows that miss no value and have none beyond the bounds, with what was filled or clipped."""
        config = self.config
        if config.missing != "drop" and not (self.bounds.outliers or self.bounds.fills or self.bounds.ends):
            yield from ((item, item.value) for item in items)
            return
        for item in items:
            gap = next(gaps(item.value, config.missing_columns), None) if config.missing == "drop" else None
            if gap is not None:
                parcel.drop(item, "missing", field=gap)
                continue
            value = self.bounds.applied(item, item.value, parcel)
            if value is not None:
                yield item, value

    def _refused(self, item: Item, value: Value, parcel: Parcel) -> bool:
        """Whether a rule of damage, length or language refuses the row, which is then dropped."""
        config = self.config
        text = text_of(value)
        if config.damaged == "drop" and is_damaged(text):
            parcel.drop(item, "damaged")
            return True
        if config.limited:
            fewest, most, fewest_words, most_words = config.limits()
            number = len(words(text, is_chinese(text))) if fewest_words or most_words else 0
            for reason, wrong in (
                ("too_short", fewest is not None and len(text) < fewest),
                ("too_long", most is not None and len(text) > most),
                ("too_few_words", fewest_words is not None and number < fewest_words),
                ("too_many_words", most_words is not None and number > most_words),
            ):
                if wrong:
                    parcel.drop(item, reason, **({"words": number} if "words" in reason else {"characters": len(text)}))
                    return True
        if config.languages:
            found = identify(text)
            if found.code not in config.languages or found.confidence < config.language_confidence:
                parcel.drop(item, "language", language=found.code, confidence=round(found.confidence, 3))
                return True
        return False


def rewriting(config: CleanConfig) -> Rewriting:
    """What the settings do to a text."""
    made = repairs(
        encoding=config.encoding,
        unicode=config.unicode,
        controls=config.controls,
        whitespace=config.whitespace,
        width=config.width,
        chinese=config.chinese,
    )
    if config.html:  # behind the repair of encodings, before white space is tidied
        made.insert(int(config.encoding), Repair("html", has_markup, strip_markup, MARKUP_SIGN))
    classical = Classical(
        config.lowercase,
        config.segment,
        config.remove_punctuation,
        config.remove_stop_words,
        config.stop_word_file,
    )
    asked = _asked(config)
    kinds: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind in config.mask or "all" in config.mask)
    lines = tuple(rule for name, rule in LINE_RULES.items() if name in asked)
    return Rewriting(tuple(made), lines, kinds, config.mask_text, classical)


def page_rules(config: CleanConfig) -> tuple[str, ...]:
    """The rules about whole pages that the settings ask for, in the order in which they are asked."""
    asked = _asked(config)
    return tuple(name for name in PAGE_RULES if name in asked)


def _asked(config: CleanConfig) -> set[str]:
    wanted, unwanted = (
        {rule for name in names for rule in SETS.get(name, (name,))}
        for names in (config.quality, config.quality_except)
    )
    return wanted - unwanted
