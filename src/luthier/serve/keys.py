"""Keys of clients: held as hashes, each with what it may do."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.base.errors import ConfigError

SCOPES = ("use", "admin", "metrics")
"""use: ask models; admin: load and unload adapters; metrics: read /metrics."""

_LINE = re.compile(r"[0-9a-f]{64}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Key:
    """One key by its hash."""

    digest: bytes
    scopes: frozenset[str]
    name: str


class Keys:
    """All keys of a server; without any, everybody on this machine may do everything."""

    def __init__(self, keys: Sequence[Key]):
        self._keys = tuple(keys)

    @property
    def needed(self) -> bool:
        """Whether a key must be sent."""
        return bool(self._keys)

    def find(self, sent: str) -> Key | None:
        """The key that was sent, if it is one.  Takes as long for a wrong one."""
        digest, found = hashlib.sha256(sent.encode("utf-8", "surrogateescape")).digest(), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def read_keys(host: str, api_key: str | None, file: str | None, environment: Mapping[str, str]) -> Keys:
    """The keys of a server that listens on `host`.

    Raises:
        ConfigError: the file is wrong, or a public address has no key.
    """
    keys: list[Key] = []
    for secret, name in ((api_key, "--api_key"), (environment.get("LUTHIER_API_KEY"), "LUTHIER_API_KEY")):
        if secret is not None:
            if len(secret.strip()) < 8 or secret != secret.strip():
                raise ConfigError("a key has at least 8 characters and no blanks around it", where=name, code="bad_key")
            keys.append(Key(hashlib.sha256(secret.encode()).digest(), frozenset(SCOPES), name))
    if file is not None:
        keys += _from_file(Path(file))
    if not keys and host not in _LOOPBACK:
        raise ConfigError(
            "refusing to listen on a public address without a key",
            where=f"--host {host}",
            code="public_without_key",
            fix="Set LUTHIER_API_KEY or --api_keys FILE, or listen on 127.0.0.1",
        )
    return Keys(keys)


def allowed_hosts(host: str, named: Sequence[str]) -> frozenset[str] | None:
    """The names a server may be called by; None: any (it is public, and asks for a key)."""
    if named:
        return frozenset(name.lower() for name in named)
    return frozenset(_LOOPBACK) if host in _LOOPBACK else None


def _from_file(path: Path) -> list[Key]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys cannot be read: {error}", where=str(path), code="bad_key") from error
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        scopes = frozenset(words[1].split(",")) if len(words) > 1 else frozenset({"use"})
        if not _LINE.fullmatch(words[0]) or not scopes <= set(SCOPES):
            raise ConfigError(
                "a line is the SHA-256 of a key in hex, scopes with commas between them, and a name",
                where=f"{path}:{number}",
                code="bad_key",
                fix=f"Scopes: {', '.join(SCOPES)}; a hash: printf %s KEY | sha256sum",
            )
        keys.append(Key(bytes.fromhex(words[0]), scopes, " ".join(words[2:]) or f"line {number}"))
    if not keys:
        raise ConfigError("no key in this file", where=str(path), code="bad_key")
    return keys
