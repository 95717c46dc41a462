"""Small changes of pictures on this machine, by Pillow."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from luthier.base.errors import DataError, MissingExtra
from luthier.base.records import Json
from luthier.base.rundir import storage_error
from luthier.data.media import picture_fault

Change = Literal["crop", "rotate", "flip", "noise"]
CHANGES: tuple[Change, ...] = ("crop", "rotate", "flip", "noise")
_COLUMNS = ("images", "image")
_PLACES = ("bbox", "bboxes", "boxes", "box", "objects", "keypoints", "segmentation", "points")
"""Columns that say where something is in the picture, which a change of shape would make wrong."""


def pictures_of(value: Mapping[str, Json]) -> tuple[str, list[str]] | None:
    """The column with the pictures of a row, and their paths; None where there are none on this machine."""
    for name in _COLUMNS:
        found = value.get(name)
        paths = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        local = [path for path in paths if isinstance(path, str) and "://" not in path and not path.startswith("data:")]
        if local and len(local) == len(paths):
            return name, local
    return None


def fits(value: Mapping[str, Json], change: Change) -> bool:
    """Whether a change leaves true what the row says of its pictures."""
    return change == "noise" or not any(value.get(name) for name in _PLACES)


def changed(source: Path, target: Path, change: Change, strength: float, generator: np.random.Generator) -> None:
    """Write a changed copy of a picture.

    crop keeps a random part with 1 - strength of each side; rotate turns by up to 90 * strength degrees and cuts the
    corners away; flip mirrors left and right; noise adds Gaussian noise with a deviation of 100 * strength levels.

    Raises:
        DataError: code `bad_media` for a file that is missing, no picture, or too large a one.
        RunError: code `disk_full` or `cannot_write`.
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "data", what_for="changing pictures") from error
    fault = picture_fault(source)
    if fault:
        raise DataError(fault, where=str(source), code="bad_media")
    try:
        with Image.open(source) as opened:
            kind = opened.format
            picture = opened.convert("RGBA" if "A" in opened.getbands() else "RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"not a picture: {error}", where=str(source), code="bad_media") from error
    made = _apply(picture, change, strength, generator)
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        made.convert("RGB" if kind == "JPEG" else made.mode).save(staged, format=kind or "PNG")
        staged.replace(target)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise storage_error(error, target) from error


def _apply(picture: Any, change: Change, strength: float, generator: np.random.Generator) -> Any:
    from PIL import Image, ImageOps

    width, height = picture.size
    if change == "flip":
        return ImageOps.mirror(picture)
    if change == "crop":
        kept = max(1, round(width * (1 - strength))), max(1, round(height * (1 - strength)))
        left, top = (
            int(generator.integers(whole - part + 1)) for whole, part in zip((width, height), kept, strict=True)
        )
        return picture.crop((left, top, left + kept[0], top + kept[1]))
    if change == "rotate":
        angle = float(generator.uniform(-90, 90)) * strength
        turned = picture.rotate(angle, resample=Image.Resampling.BICUBIC, expand=False)
        inner = _inner(width, height, math.radians(angle))
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        return turned.crop((left, top, left + inner[0], top + inner[1]))
    pixels = np.asarray(picture, np.float32)
    colours = pixels[..., :3] + generator.normal(0, 100 * strength, pixels[..., :3].shape)
    pixels = np.concatenate([np.clip(np.rint(colours), 0, 255), pixels[..., 3:]], axis=2)
    return Image.fromarray(pixels.astype(np.uint8))


def _inner(width: int, height: int, angle: float) -> tuple[int, int]:
    """Size of the largest rectangle of the picture's own proportions that a turned picture fills."""
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    share = min(width / (width * cosine + height * sine), height / (width * sine + height * cosine))
    return max(1, int(width * share)), max(1, int(height * share))
