"""A sealed directory proves that it is whole, also where its files were hashed while they were written."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import SafetensorError

from luthier.base.errors import RunError
from luthier.base.sealed import MANIFEST, published, seal, verify


def folder(root: Path) -> Path:
    (root / "below").mkdir()
    for name in ("one", "two", "below/three"):
        (root / name).write_bytes(name.encode() * 1000)
    return root


def test_what_is_known_is_not_hashed_again_and_all_of_it_is_verified(tmp_path: Path):
    here = folder(tmp_path)
    seal(here, {"one": sha256(b"one" * 1000).hexdigest()})
    listed = json.loads((here / MANIFEST).read_text())["files"]
    assert list(listed) == ["below/three", "one", "two"]
    assert all(found["sha256"] == sha256(name.encode() * 1000).hexdigest() for name, found in listed.items())
    assert verify(here) is None
    (here / "one").write_bytes(b"eno" * 1000)
    assert verify(here) == "one does not match its hash"
    (here / "one").unlink()
    assert verify(here) == "one is missing"


def test_a_file_that_is_not_what_was_written_does_not_verify(tmp_path: Path):
    here = folder(tmp_path)
    seal(here, {"two": sha256(b"something else").hexdigest()})
    assert verify(here) == "two does not match its hash"


def test_what_is_published_is_whole_or_absent(tmp_path: Path):
    final, staging = tmp_path / "final", tmp_path / ".staging"
    final.mkdir()  # an empty folder gives way
    (staging / "left over").mkdir(parents=True)
    with published(final, staging) as hashes:
        (staging / "one").write_bytes(b"1")
        hashes["one"] = sha256(b"1").hexdigest()
        assert not list(final.iterdir())
    assert verify(final) is None and {path.name for path in final.iterdir()} == {"one", MANIFEST}
    with pytest.raises(RunError, match="disk is full"), published(tmp_path / "next", staging):
        (staging / "one").write_bytes(b"1")
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RunError) as occupied, published(final, staging):
        (staging / "two").write_bytes(b"2")
    assert occupied.value.code == "cannot_write" and verify(final) is None
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
