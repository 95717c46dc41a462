"""The bytes of a text file as UTF-8, whatever it is compressed with or written in."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import charset_normalizer
import zstandard

from luthier.base.errors import DataError

BLOCK = 2**20
COMPRESSED = (".gz", ".zst")

_SAMPLE = 2**18
_ENOUGH = 16
"""Bytes that are not UTF-8 needed before another encoding is considered; fewer are damage to single rows."""
_FREQUENT = frozenset("的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生")
"""The most frequent characters of Chinese; text of another encoding misread as GB18030 hardly holds any."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def file_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file.

    Raises:
        DataError: `unreadable_file`.
    """
    try:
        with _open(path) as stream:
            while block := stream.read(BLOCK):
                yield block
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError("the file cannot be read", where=str(path), fix=f"{error}", code="unreadable_file") from error


def _open(path: Path) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(path, "rb"))
        case ".zst":
            reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), read_across_frames=True, closefd=True)
            return cast(BinaryIO, reader)
        case _:
            return path.open("rb")


def utf8_blocks(path: Path, encoding: str) -> Iterator[bytes]:
    """The file's text as UTF-8.  Bytes that mean nothing in `encoding` become bytes that mean nothing in UTF-8, so
    that they are reported for the row they stand in."""
    if encoding == "utf-8":
        yield from file_blocks(path)
        return
    decoder = codecs.getincrementaldecoder(encoding)("luthier.keep_invalid")
    for block in file_blocks(path):
        yield decoder.decode(block).encode("utf-8", "surrogateescape")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogateescape")


def _keep_invalid(error: UnicodeError) -> tuple[str, int]:
    return "\udcff", cast(UnicodeDecodeError, error).end


codecs.register_error("luthier.keep_invalid", _keep_invalid)


def detect(path: Path) -> str:
    """Python's name of the encoding a file is written in.

    Byte order marks decide; then UTF-8, if most lines with other than ASCII are valid; then UTF-16 by its zero
    bytes, GB18030 by the most frequent Chinese characters, and charset-normalizer for all others.

    Raises:
        DataError: `undecodable` when nothing fits (most likely not a text file).
    """
    sample = b""
    for number, block in enumerate(file_blocks(path)):
        if number == 0:
            for mark, encoding in _MARKS:
                if block.startswith(mark):
                    return encoding
            if utf16 := _utf16(block[:4096]):
                return utf16
        if not block.isascii():
            sample += block
        if len(sample) >= _SAMPLE:
            sample = sample[: sample.rfind(b"\n") + 1 or None]
            break
    if not sample or _is_utf8(sample):
        return "utf-8"
    if _is_chinese(sample):
        return "gb18030"
    best = charset_normalizer.from_bytes(sample).best()
    if best is None:
        what = "neither UTF-8 nor any other known text encoding"
        raise DataError(what, where=str(path), fix="Is this a text file?", code="undecodable")
    return best.encoding


def _utf16(head: bytes) -> str | None:
    """UTF-16 without a mark: every text has ASCII characters, whose other byte is zero, and JSON begins with one."""
    zeros = (head[0::2].count(0), head[1::2].count(0))
    if max(zeros) * 8 < len(head) or min(zeros) * 8 > max(zeros):
        return None
    return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"


def _is_utf8(sample: bytes) -> bool:
    valid = invalid = damage = 0
    for line in sample.split(b"\n"):
        if line.isascii():
            continue
        try:
            codecs.getincrementaldecoder("utf-8")().decode(line)  # the sample may end inside a character
            valid += 1
        except UnicodeDecodeError:
            invalid += 1
            damage += sum(byte >= 0x80 for byte in line)
    return valid >= invalid or damage < _ENOUGH


def _is_chinese(sample: bytes) -> bool:
    text = codecs.getincrementaldecoder("gb18030")("replace").decode(sample)
    wide = [character for character in text if ord(character) >= 0x80]
    damaged = wide.count("\ufffd")
    return damaged * 50 <= len(wide) and sum(character in _FREQUENT for character in wide) * 20 >= len(wide)
