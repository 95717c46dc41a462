"""What a teacher says of each trained position: asked in every step, or once beforehand and kept.

    <store>/keys.npy starts.npy ids.npy logprobs.npy facts.json    one row of the K likeliest tokens for each position

A sequence is found by the hash of its tokens and trained positions, so what is kept serves any order, mix or share
of the data.

Legend: T packed tokens, R trained positions, V vocabulary, K known tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.base.errors import RunError
from luthier.data.batch import Batch, Group, Tokens, collate
from luthier.data.tokens import publish
from luthier.model.config import ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer


class Teacher(Protocol):
    """What is known of a teacher."""

    def ready(self, student: Model) -> None:
        """Load what is needed, on the student's device."""
        ...

    def known(self, batch: Batch) -> tuple[Tensor, ...]:
        """Rows for each trained position, without graph."""
        ...


class Live:
    """A teacher that runs beside the student: its hidden states, and logits of them."""

    def __init__(self, config: ModelConfig):
        self.config = config
        self.model: Model | None = None

    def ready(self, student: Model) -> None:
        self._load(student.device)

    def _load(self, device: torch.device) -> None:
        if self.model is None:
            self.model = load_teacher(self.config, device)

    def known(self, batch: Batch) -> tuple[Tensor, ...]:
        """hidden_RD"""
        self._load(batch.ids_T.device)
        assert self.model is not None
        with torch.no_grad():
            return (self.model.hidden(batch)[batch.trained_R],)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """logits_RV, float32."""
        assert self.model is not None, "prepare comes first"
        with torch.no_grad():
            return self.model.logits(hidden_RD).float()


class Stored:
    """The K likeliest tokens of each position, from files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._rows: dict[bytes, tuple[int, int]] | None = None

    def ready(self, student: Model) -> None:
        self._read()

    def _read(self) -> dict[bytes, tuple[int, int]]:
        """Where the rows of each sequence lie."""
        if self._rows is None:
            keys, starts = np.load(self.folder / "keys.npy"), np.load(self.folder / "starts.npy")
            bounds = zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
            self._rows = {key.tobytes(): bound for key, bound in zip(keys, bounds, strict=True)}
            self._ids = np.load(self.folder / "ids.npy", mmap_mode="r")
            self._logprobs = np.load(self.folder / "logprobs.npy", mmap_mode="r")
        return self._rows

    def known(self, batch: Batch) -> tuple[Tensor, ...]:
        """ids_RK, logprobs_RK.  Raises RunError for a sequence that the teacher was not asked about."""
        known = self._read()
        ids_T, weights_T = batch.ids_T.cpu().numpy().astype(np.int32), batch.weights_T.cpu().numpy()
        found: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        for start, length in zip(batch.offsets, batch.lengths, strict=False):
            part = slice(start, start + length)
            bound = known.get(_key(ids_T[part], weights_T[part] != 0))
            if bound is None:
                raise RunError("the teacher was not asked about this sequence", where=str(self.folder))
            found.append(np.arange(*bound))
        rows = np.concatenate(found)
        device = batch.ids_T.device
        return (
            torch.from_numpy(self._ids[rows].astype(np.int64)).to(device),
            torch.from_numpy(self._logprobs[rows].astype(np.float32)).to(device),
        )


@dataclass(frozen=True)
class Unasked:
    """Rows of the sizes that are kept of a teacher, with nothing in them: for a plan."""

    top_k: int

    def ready(self, student: Model) -> None:
        """Nothing."""

    def known(self, batch: Batch) -> tuple[Tensor, ...]:
        """ids_RK, logprobs_RK"""
        ids_RK = batch.trained_R.new_empty(len(batch.trained_R), self.top_k)
        return ids_RK, torch.empty_like(ids_RK, dtype=torch.float32)


def load_teacher(config: ModelConfig, device: torch.device) -> Model:
    """The teacher, in evaluation mode.  Raises ModelError."""
    model = load_model(config, device, tokenizer=load_tokenizer(config), trained=False)
    model.eval_mode()
    return model


def ask(
    teacher: Callable[[], Model],
    groups: Iterable[Group],
    folder: Path,
    *,
    top_k: int,
    temperature: float,
    batch_tokens: int,
    progress: Callable[[int], None],
) -> None:
    """Keep what a teacher says of every sequence, unless it is there; whole or not at all.

    Args:
        teacher: loads it; called only when it is needed.
        batch_tokens: tokens the teacher reads at once.
        progress: told how many sequences have been read.

    Raises:
        RunError: what it says cannot be written.
    """
    if folder.exists():
        return
    model = teacher()
    keys: list[bytes] = []
    ids: list[NDArray[np.int32]] = []
    logprobs: list[NDArray[np.float32]] = []
    starts = [0]
    for batch, names in _batches(groups, batch_tokens):
        top_RK, where_RK = _likeliest(model, batch.to(model.device), top_k, temperature)
        ids.append(where_RK.cpu().numpy().astype(np.int32))
        logprobs.append(top_RK.cpu().numpy())
        counts = [int((part != 0).sum()) for part in batch.weights_T.split(batch.lengths)]
        starts += (starts[-1] + np.cumsum(counts)).tolist()
        keys += names
        progress(len(names))
    arrays = {
        "keys": np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16),
        "starts": np.array(starts, dtype=np.int64),
        "ids": np.concatenate([np.empty((0, top_k), np.int32), *ids]),
        "logprobs": np.concatenate([np.empty((0, top_k), np.float32), *logprobs]),
    }
    publish(folder, arrays, {"top_k": top_k, "temperature": temperature})


def _batches(groups: Iterable[Group], most: int) -> Iterable[tuple[Batch, list[bytes]]]:
    """Different sequences with something to learn, a few at a time."""
    seen: set[bytes] = set()
    taken: list[Tokens] = []
    names: list[bytes] = []
    for tokens in (tokens for group in groups for tokens in group.sequences):
        # As a batch has it: the weight of a token stands at the position before it.
        trained = np.append(tokens.weights[1:] != 0, False)
        name = _key(tokens.ids, trained)
        if name in seen:
            continue
        seen.add(name)
        if taken and sum(map(len, taken)) + len(tokens) > most:
            yield collate([Group((one,)) for one in taken], range(len(taken))), names
            taken, names = [], []
        taken.append(tokens)
        names.append(name)
    if taken:
        yield collate([Group((one,)) for one in taken], range(len(taken))), names


def _likeliest(model: Model, batch: Batch, top_k: int, temperature: float) -> tuple[Tensor, Tensor]:
    """logprobs_RK and ids_RK, a few rows of logits at a time."""
    with torch.no_grad():
        hidden_RD = model.hidden(batch)[batch.trained_R]
        parts = [
            (model.logits(rows).float() / temperature).log_softmax(1).topk(top_k, dim=1)
            for rows in hidden_RD.split(1024)
        ]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _key(ids: NDArray[np.int32], trained: NDArray[np.bool_]) -> bytes:
    hashed = hashlib.blake2b(np.ascontiguousarray(ids, dtype=np.int32).tobytes(), digest_size=16)
    hashed.update(np.packbits(trained).tobytes())
    return hashed.digest()
