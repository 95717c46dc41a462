"""What this machine has, what is missing, and the command that brings it."""

from __future__ import annotations

import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from luthier.base.config import Config
from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.base.records import Json

_GIB = 2**30


class DoctorConfig(Config):
    """Settings of `luthier doctor`."""

    online: bool = False
    """Also try to reach the model hubs."""


@dataclass(frozen=True)
class Finding:
    """One fact about the machine; `fix` is the command that repairs it."""

    about: str
    found: str
    verdict: Literal["ok", "optional", "problem"] = "ok"
    fix: str = ""


def doctor(options: DoctorConfig, console: Console) -> None:
    """Print the findings on stdout.

    Raises:
        ConfigError: code `unhealthy` when something that every run needs is missing or outside the tested range.
    """
    groups = {"Versions": list(versions()), "Machine": [*machine(), *devices()], "Optional": list(optional())}
    if options.online:
        groups["Hubs"] = list(hubs())
    problems = [finding for group in groups.values() for finding in group if finding.verdict == "problem"]
    if console.json:
        facts: dict[str, Json] = {
            title.lower(): [asdict(finding) for finding in group] for title, group in groups.items()
        }
        console.result("", healthy=not problems, **facts)
    else:
        for title, group in groups.items():
            console.table(title, [_row(finding) for finding in group], result=True)
    if problems:
        raise ConfigError(
            "; ".join(f"{finding.about}: {finding.found}" for finding in problems),
            code="unhealthy",
            fix="; ".join(finding.fix for finding in problems if finding.fix),
        )


def _row(finding: Finding) -> dict[str, str | None]:
    sign = {"ok": "ok", "optional": "-", "problem": "!!"}[finding.verdict]
    return {"": sign, "what": finding.about, "found": finding.found, "to get it": finding.fix}


def versions() -> Iterator[Finding]:
    """Python and every package that all runs need, against the range Luthier is tested with."""
    yield Finding("python", f"{platform.python_version()} ({platform.platform()})")
    for requirement in _requirements(extra=None):
        yield _installed(requirement, "problem", f"pip install '{requirement.name}{requirement.specifier}'")


def optional() -> Iterator[Finding]:
    """Packages of the extras."""
    for extra in metadata.metadata("luthier").get_all("Provides-Extra") or []:
        for requirement in _requirements(extra):
            yield _installed(requirement, "optional", f"pip install 'luthier[{extra}]'")


def _requirements(extra: str | None) -> Iterator[Requirement]:
    for text in metadata.requires("luthier") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if extra is None else marker is not None and not always and marker.evaluate({"extra": extra}):
            yield requirement


def _installed(requirement: Requirement, otherwise: Literal["optional", "problem"], fix: str) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", otherwise, fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, version)
    return Finding(requirement.name, f"{version}, tested with {requirement.specifier}", otherwise, fix)


def machine() -> Iterator[Finding]:
    """Memory, and room for runs and for the cache."""
    memory = psutil.virtual_memory()
    yield Finding("memory", f"{memory.available / _GIB:.1f} GiB free of {memory.total / _GIB:.1f} GiB")
    cgroup = Path("/sys/fs/cgroup/memory.max")
    limit = cgroup.read_text().strip() if cgroup.exists() else "max"
    if limit.isdecimal():
        yield Finding("memory limit", f"{int(limit) / _GIB:.1f} GiB for this container")
    cache = Path(os.environ.get("LUTHIER_CACHE") or Path.home() / ".cache" / "luthier")
    for about, path in (("disk here", Path.cwd()), ("cache", cache)):
        yield _room(about, path)


def _room(about: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / _GIB
    found = f"{free:.1f} GiB free, {path}"
    if not os.access(existing, os.W_OK):
        return Finding(about, f"{found}, cannot be written", "problem", "set LUTHIER_CACHE to a directory of your own")
    if free < 1:
        return Finding(about, found, "problem", "free some space")
    return Finding(about, found)


def devices() -> Iterator[Finding]:
    """Processors and accelerators, with the number formats they are fast in."""
    import torch

    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding("cpu", f"{cores} cores, {len(os.sched_getaffinity(0))} usable threads, {capability}")
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        formats = ["float32", *(["bfloat16"] if about.major >= 8 else [])]
        formats += ["fp8"] if (about.major, about.minor) >= (8, 9) else []
        size = f"{about.total_memory / _GIB:.0f} GiB"
        yield Finding(
            f"gpu {index}", f"{about.name}, {size}, {' '.join(formats)}, driver for CUDA {torch.version.cuda}"
        )
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPU only"
        yield Finding("gpu", f"none usable; {built}", "optional", "see pytorch.org/get-started for a build with CUDA")


def hubs() -> Iterator[Finding]:
    """Whether the model hubs answer."""
    for name, url in (
        ("hugging face", os.environ.get("HF_ENDPOINT", "https://huggingface.co")),
        ("modelscope", "https://www.modelscope.cn"),
    ):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5) as answer:
                yield Finding(name, f"{url} answers ({answer.status})")
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = f"{url} cannot be reached: {error}"
            yield Finding(name, reason, "optional", "download elsewhere and name the folder")
