"""Pictures, sounds and films that a row names: looked at on this machine, never fetched.

What an address on the internet holds is not known, so that it is no fault.  An address that only means something on the
reader's own machine or network is one: whoever wrote the row cannot have meant what lies there.
"""

from __future__ import annotations

import base64
import binascii
import io
import ipaddress
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from luthier.base.records import Fault, Json, Where

MOST_SIDE = 16_384
"""Pixels of a picture's longer side; a larger one is taken for a trap."""
_IMAGES, _OTHERS = ("images", "image"), ("videos", "video", "audios", "audio")
_PARTS = ("image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio")
_CHATS = ("messages", "conversations", "conversation")


def media_fault(value: Mapping[str, Json], where: Where) -> Fault | None:
    """What is wrong with the first bad medium of a row (code `bad_media`): a file that is missing or is no picture, a
    picture beyond all measure, an address that leads into the reader's own machine or network.

    Args:
        where: files are named from the folder of the row's own file.
    """
    if not may_have_media(tuple(value)):
        return None
    for path, named, picture in _named(value):
        message = _wrong(named, Path(where.file).parent, picture)
        if message:
            return Fault("bad_media", where, message, path)
    return None


@lru_cache(maxsize=4096)
def may_have_media(columns: tuple[str, ...]) -> bool:
    """Whether a row with these columns may name any."""
    return any(name in (*_IMAGES, *_OTHERS, *_CHATS) for name in columns)


def _named(value: Mapping[str, Json]) -> Iterator[tuple[str, str, bool]]:
    """Path inside the row, name, and whether it is a picture's, of everything a row names."""
    for column in (*_IMAGES, *_OTHERS):
        found = value.get(column)
        for number, one in enumerate(found if isinstance(found, list) else [found]):
            name = _name(one)
            if name:
                yield f"{column}[{number}]" if isinstance(found, list) else column, name, column in _IMAGES
    for column in _CHATS:
        messages = value.get(column)
        for turn, message in enumerate(messages if isinstance(messages, list) else ()):
            parts = message.get("content") if isinstance(message, dict) else None
            for number, part in enumerate(parts if isinstance(parts, list) else ()):
                kind = part.get("type") if isinstance(part, dict) else None
                if isinstance(part, dict) and isinstance(kind, str) and kind in _PARTS:
                    name = _name(part.get(kind, part.get("value")))
                    if name:
                        yield f"{column}[{turn}].content[{number}]", name, kind.startswith("image")


def _name(one: Json) -> str | None:
    """A path or address, plain or in an object."""
    if isinstance(one, dict):
        one = next((one[key] for key in ("url", "path") if one.get(key)), None)
    return one if isinstance(one, str) and one else None


def _wrong(named: str, folder: Path, picture: bool) -> str | None:
    """What is wrong with a medium, in a sentence; None when it is sound or cannot be known."""
    if named.startswith("data:"):
        data = _inline(named)
        if data is None:
            return "the data address cannot be decoded"
        return picture_fault(io.BytesIO(data)) if picture else None
    if "://" in named:
        return _address_fault(named)
    path = folder / named
    try:
        if not path.is_file():
            return f"there is no file {named[:200]!r} beside the data"
    except (OSError, ValueError):
        return f"{named[:200]!r} cannot be the name of a file"
    return picture_fault(path) if picture else None


def _inline(named: str) -> bytes | None:
    head, comma, body = named.partition(",")
    if not comma:
        return None
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError):
        return None


def _address_fault(named: str) -> str | None:
    try:
        parts = urlsplit(named)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return f"{named[:200]!r} is no address"
    if parts.scheme not in ("http", "https"):
        return f"media are not read through {parts.scheme}: name the file by its path"
    try:
        inside = not ipaddress.ip_address(host).is_global
    except ValueError:  # a name
        inside = host == "localhost" or host.endswith((".localhost", ".local", ".internal")) or "." not in host
    return f"{host or 'nobody'} is an address of the reader's own network" if inside else None


def picture_fault(source: Path | BinaryIO) -> str | None:
    """What is wrong with a picture, in a sentence.  Its header and its checksums are read, not its pixels; without
    Pillow nothing is."""
    try:
        from PIL import Image
    except ImportError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a measure of our own
            with Image.open(source) as opened:
                width, height = opened.size
                if max(width, height) > MOST_SIDE:
                    return f"the picture has {width:,} x {height:,} pixels, more than {MOST_SIDE:,} on a side"
                opened.verify()
    except Image.DecompressionBombError:
        return f"the picture has more than {MOST_SIDE:,} pixels on a side"
    except (OSError, ValueError, SyntaxError) as error:
        return f"not a picture: {str(error)[:200]}"
    return None
