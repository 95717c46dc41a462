"""Numbers and times as a reader wants them."""

from __future__ import annotations

from luthier.run.watch import duration
from luthier.studio.words import Words

NONE = "–"


def number(value: float | None, digits: int = 4) -> str:
    """A number in few digits: 0.1548, 12,345."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def gib(value: float | None) -> str:
    """Memory: 0.7 GiB."""
    return NONE if value is None else f"{value:.1f} GiB"


def size(value: int) -> str:
    """Bytes: 1.2 MB."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value} B"


def left(seconds: float | None) -> str:
    """Time that is left."""
    return NONE if seconds is None else duration(seconds)


def ago(seconds: float, t: Words) -> str:
    """How long something is past: 5 min ago."""
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= unit:
            return t("ago").format(f"{seconds // unit:.0f} {t(name)}")
    return t("ago").format(f"{seconds:.0f} {t('seconds')}")


def steps(step: int, total: int) -> str:
    """Step of steps."""
    return f"{step:,} / {total:,}" if total else f"{step:,}"
