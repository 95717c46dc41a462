"""Answers kept on disk: what was answered once is never asked again, so that work goes on where it stopped."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from luthier.base.errors import DataError, RunError


class Kept:
    """Answers on disk, by the hash of what was asked."""

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store = sqlite3.connect(path, check_same_thread=False, timeout=60)
            with self._store:
                self._store.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            fix = "Name another file with --endpoint.answers"
            raise DataError(f"answers cannot be kept: {error}", where=str(path), fix=fix) from error

    def get(self, key: bytes) -> str | None:
        """The answer kept under a key."""
        with self._lock:
            found = self._store.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def put(self, key: bytes, answer: str) -> None:
        """Keep an answer."""
        try:
            with self._lock, self._store:
                self._store.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, answer))
        except sqlite3.Error as error:
            raise RunError(f"answers cannot be kept: {error}", where=str(self._path), code="cannot_write") from error

    def close(self) -> None:
        """Give the file back."""
        self._store.close()
