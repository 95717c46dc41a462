"""Checkpoints are whole or absent, broken ones are named and set aside, the last good one is never lost."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from saved import digest

from luthier.base.errors import ConfigError, RunError
from luthier.base.sealed import verify
from luthier.engine import checkpoint
from luthier.engine.checkpoint import Checkpoints, State, Tensors, put, read
from luthier.model.lending import Whole


def tensors(seed: int) -> Tensors:
    torch.manual_seed(seed)
    return Tensors(
        {"w": torch.randn(4, 4), "b": torch.randn(4, dtype=torch.bfloat16)},
        {"w::exp_avg": torch.randn(4, 4), "w::step": torch.tensor(3.0)},
        {},
    )


def artefact(folder: Path, weights: Whole) -> None:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "config.json").write_text("{}")


def save(store: Checkpoints, step: int, *, best: bool = False) -> Path:
    return store.save(State(step=step, best=0.5), tensors(step), artefact, best=best)


def complain(message: str) -> None:
    raise AssertionError(message)


def test_what_is_saved_comes_back_exactly(tmp_path: Path):
    store = Checkpoints(tmp_path / "checkpoints", 2)
    path = save(store, 7)
    state, loaded = read(path)
    assert state == State(step=7, best=0.5)
    assert digest(loaded.trained) == digest(tensors(7).trained) != digest(tensors(8).trained)
    for name, expected in tensors(7).trained.items():
        assert torch.equal(loaded.trained[name], expected) and loaded.trained[name].dtype == expected.dtype
    assert store.named("LATEST") == path and store.latest(complain) == path
    live = {"w": torch.zeros(4, 4)}
    put(live, loaded.trained)
    assert torch.equal(live["w"], tensors(7).trained["w"])


def test_every_file_is_in_the_manifest(tmp_path: Path):
    path = save(Checkpoints(tmp_path, None), 1)
    listed = json.loads((path / "MANIFEST.json").read_text())["files"]
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert set(listed) == present - {"MANIFEST.json"}


def test_files_can_be_read_by_whom_other_new_files_can(tmp_path: Path):
    def private(folder: Path, weights: Whole) -> None:
        artefact(folder, weights)
        (folder / "model.safetensors").write_bytes(b"")
        (folder / "model.safetensors").chmod(0o600)  # as safetensors leaves them

    path = Checkpoints(tmp_path, None).save(State(step=1), tensors(1), private, best=False)
    (tmp_path / "new").touch()
    usual = (tmp_path / "new").stat().st_mode
    assert {file.stat().st_mode for file in path.rglob("*") if file.is_file()} == {usual}


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_broken_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: str):
    store = Checkpoints(tmp_path, 3)
    good, bad = save(store, 1), save(store, 2)
    file = bad / "trained.safetensors"
    if damage == "truncate":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    else:
        (bad / "MANIFEST.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be resumed"):
        read(bad)
    said: list[str] = []
    assert store.latest(said.append) == good
    assert len(said) == 1 and "step-00000002" in said[0]
    assert (tmp_path / "step-00000002.corrupt").is_dir() and not bad.exists()


def test_rotation_keeps_the_latest_and_the_best(tmp_path: Path):
    store = Checkpoints(tmp_path, 1)
    save(store, 1)
    best = save(store, 2, best=True)
    save(store, 3)
    last = save(store, 4)
    assert store.all() == [best, last]
    assert store.named("BEST") == best and store.named("LATEST") == last
    assert not list(tmp_path.glob(".staging*"))


@pytest.mark.parametrize("failure", ["artefact", "adapter", "tensors", "seal", "rename"])
def test_a_full_disk_publishes_nothing_and_loses_nothing(tmp_path: Path, failure: str, monkeypatch: pytest.MonkeyPatch):
    store = Checkpoints(tmp_path, 1)
    good = save(store, 1)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_in_safetensors(*args: object, **options: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    write = artefact
    if failure == "artefact":
        write = full
    elif failure == "adapter":
        write = full_in_safetensors
    elif failure == "tensors":
        monkeypatch.setattr(checkpoint, "write_tensors", full)
    elif failure == "seal":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RunError) as caught:
        store.save(State(step=2), tensors(2), write, best=False)
    monkeypatch.undo()
    assert caught.value.code == "disk_full"
    assert store.all() == [good] and verify(good) is None
    assert store.named("LATEST") == good
    assert not list(tmp_path.glob(".staging*"))


def test_leftovers_of_a_killed_save_are_removed_and_never_read(tmp_path: Path):
    store = Checkpoints(tmp_path, 2)
    good = save(store, 1)
    (tmp_path / ".staging-00000002").mkdir()
    (tmp_path / ".staging-00000002" / "trained.safetensors").write_bytes(b"half")
    assert store.latest(complain) == good
    store.clean()
    assert not list(tmp_path.glob(".staging*"))
