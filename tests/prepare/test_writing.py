"""What is written is whole or absent, is JSON lines or Parquet, and reads back as it was."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow.parquet
import pytest
from workshop import run, write_rows

from luthier.base.errors import ConfigError, RunError
from luthier.base.records import Where
from luthier.prepare.frame import Facts
from luthier.prepare.order import reordered
from luthier.prepare.origins import Origins, OriginWriter
from luthier.prepare.page import page
from luthier.prepare.parcel import Item, Parcel, Placed, Tally, packed
from luthier.prepare.report import Chart, Finished, Report, Table
from luthier.prepare.table import write_parquet
from luthier.prepare.write import Writer, part_paths


def parquet(tmp_path: Path, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], pyarrow.Schema, tuple[str, ...]]:
    """Rows as they come back from Parquet, the schema, and the columns that became text."""
    path = write_rows(tmp_path / "rows.parquet", rows)
    mixed = write_parquet(path)
    table = pyarrow.parquet.read_table(path)
    return table.to_pylist(), table.schema, mixed


def test_columns_keep_their_types(tmp_path: Path) -> None:
    rows = [
        {"a": 1, "b": 0.5, "c": "x", "d": True, "e": [1, 2], "f": None},
        {"a": 2, "b": 1, "c": "", "d": False, "e": []},
    ]
    back, schema, mixed = parquet(tmp_path, rows)
    assert mixed == ()
    assert [str(schema.field(name).type) for name in "abcd"] == ["int64", "double", "string", "bool"]
    assert back == [{**rows[0]}, {**rows[1], "f": None}]


def test_messages_are_structures_whose_keys_may_differ(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
        {"messages": [{"role": "user", "content": "q", "name": "n"}]},
    ]
    back, schema, mixed = parquet(tmp_path, rows)
    assert mixed == () and "struct" in str(schema.field("messages").type)
    strip = [[{k: v for k, v in message.items() if v is not None} for message in row["messages"]] for row in back]
    assert strip == [row["messages"] for row in rows]


@pytest.mark.parametrize(
    "values",
    [
        [1, "x"],
        [{"x": 1}, {"y": 2}],
        [{}, {"a": 1}],
        [[{"arguments": {"city": "Rome"}}], [{"arguments": {"day": 1}}]],
        [2**70, 1.5],
    ],
)
def test_columns_that_do_not_agree_become_json_text(values: list[Any], tmp_path: Path) -> None:
    rows = [{"column": value} for value in values]
    back, _, mixed = parquet(tmp_path, rows)
    if values[0] == 2**70:  # larger than any Parquet number
        assert mixed == () and back[0]["column"] == float(2**70)
    else:
        assert mixed == ("column",)
        assert [json.loads(row["column"]) for row in back] == values


def parcel(lines: dict[str, list[str]]) -> Parcel:
    made = Parcel()
    for part, rows in lines.items():
        for number, row in enumerate(rows):
            made.keep_line("f", number + 1, row.encode(), part)
    return made.pack(origins=True)


def test_a_writer_names_its_files_only_when_all_are_whole(tmp_path: Path) -> None:
    paths = part_paths(str(tmp_path / "x.jsonl"), ("a", "b"))
    assert {name: path.name for name, path in paths.items()} == {"a": "x.a.jsonl", "b": "x.b.jsonl"}
    with pytest.raises(RuntimeError), Writer(("a", "b"), paths) as writer:
        writer.write(parcel({"a": ["1"], "b": ["2"]}))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.a.jsonl").write_text("old")
    with Writer(("a", "b"), {"a": paths["a"]}) as writer:
        writer.write(parcel({"a": ["1", "2"], "b": ["3"]}))
        assert (tmp_path / "x.a.jsonl").read_text() == "old"
        writer.publish()
    assert (tmp_path / "x.a.jsonl").read_text() == "1\n2\n"
    assert writer.rows == {"a": 2, "b": 1}
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x.a.jsonl").stat().st_mode) == 0o666 & ~mask


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("out.csv", "out", "file/out.jsonl"):
        with pytest.raises(ConfigError):
            part_paths(str(tmp_path / name), ("",))
    assert part_paths(str(tmp_path / "folder"), ("train", "test"))["test"] == tmp_path / "folder" / "test.jsonl"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "a"}])

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luthier.prepare.write.os.fsync", full)
    done = run("dedup", capsys, tmp_path / "out", file, flags=[])
    assert (done.code, done.error["code"]) == (RunError.exit_code, "disk_full")
    assert list((tmp_path / "out").iterdir()) == []


def test_lines_that_are_held_take_no_more_room_than_they_have_bytes() -> None:
    parcel, items = Parcel(), [Item("a", number, {"id": number}) for number in range(2000)]
    tracemalloc.start()
    keys = [packed(item.value, orjson.OPT_SORT_KEYS) for item in items]
    for item in items:
        parcel.keep(item, {"id": item.line, "text": "short"})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert keys[7] == b'{"id":7}' and parcel.rows[""][7].json() == b'{"id":7,"text":"short"}'
    assert held < 2000 * 400  # two lines and an item; what orjson returns would be ten times as much


def test_origins_come_back(tmp_path: Path) -> None:
    writer = OriginWriter(tmp_path / "rows.jsonl")
    writer.write(Placed.of([Where("a", 3), Where("b", 2**31)]))
    writer.write(Placed.of([]))
    writer.write(Placed.of([Where("b", 1), Where("b", 2)]))
    writer.close()
    origins = Origins(tmp_path / "rows.jsonl")
    assert [origins[n] for n in range(4)] == [Where("a", 3), Where("b", 2**31), Where("b", 1), Where("b", 2)]


def test_threads_that_ask_for_origins_at_once_all_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = OriginWriter(tmp_path / "rows.jsonl")
    writer.write(Placed.of([Where("a", 3), Where("b", 5)]))
    writer.close()
    read_bytes = Path.read_bytes

    def slowly(path: Path) -> bytes:  # so that every thread asks while the first one still reads
        time.sleep(0.05)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", slowly)
    origins = Origins(tmp_path / "rows.jsonl")
    with ThreadPoolExecutor(4) as threads:
        delays = [0.0, 0.02, 0.03, 0.06]
        found = list(threads.map(lambda delay: (time.sleep(delay), origins.places([2, 1]))[1], delays))
    assert found == [[("b", 5), ("a", 3)]] * 4


@pytest.mark.parametrize("known", [True, False])
def test_rows_in_another_order(known: bool, tmp_path: Path) -> None:
    parcels = [parcel({"": ["one", "two"], "removed": ["gone"]}), parcel({"": ["three"]})]
    for made in parcels if not known else []:
        made.placed = {}
    parcels[0].tally.count("seen", 2)
    made = list(reordered(iter(parcels), np.array([2, 0, 0, 1]), tmp_path))
    assert b"".join(bytes(found.lines.get("", b"")) for found in made) == b"three\none\none\ntwo\n"
    assert b"".join(bytes(found.lines.get("removed", b"")) for found in made) == b"gone\n"
    total = Tally()
    for found in made:
        total.add(found.tally)
    assert total.counts == {"seen": 2}
    assert sum(found.written.get("", 0) for found in made) == 4
    if known:
        assert [placed.line.tolist() for found in made for part, placed in found.placed.items() if not part] == [
            [1, 1, 1, 2]
        ]


def test_a_report_survives_json_and_its_page_hides_nothing_dangerous() -> None:
    tally = Tally({"<b>": 2}, {"<b>": [{"file": "f", "line": 1, "row": "<script>alert(1)</script>\u202e"}]})
    report = Report(
        {"rows": 5},
        tally,
        [Table("T", [{"a": 1, "b": "x", "c": None}, *[{"a": 1, "b": "x", "c": 2}] * 59])],
        [Chart("C", ["a", "b"], [1, 2]), Chart("L", [1.0, 2.0], [3, 4], kind="line")],
        ["a note"],
    )
    facts = Facts(5, {"malformed_json": 1}, Tally({"crlf": 1}), [{"file": "f", "line": 9, "code": "malformed_json"}])
    finished = Finished("clean", "0", ("in.jsonl",), {"x": 1}, 42, facts, {"": 5}, report)
    again = Finished.from_json(json.loads(json.dumps(finished.as_json())))
    assert again.as_json() == finished.as_json()
    html = page([finished, again], "Report")
    assert "<script>" not in html and "\u202e" not in html and html.count("<svg") == 4
    assert "10 more rows" in html and "f:9" in html
    assert "None" not in html and "<th class=number>c</th>" in html, "a cell without a number is empty"


def test_sigterm_clears_up(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [{"text": f"row {number} " * 50} for number in range(60_000)])
    words = ["data", "dedup", str(file), "--near", "--workers", "1", "--output", str(tmp_path / "out.jsonl")]
    environment = {**os.environ, "LUTHIER_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "luthier", *words], env=environment, stderr=subprocess.PIPE)
    scratch = tmp_path / "cache" / "scratch"
    until = time.monotonic() + 60
    while not (scratch.is_dir() and any(scratch.iterdir())) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert list(scratch.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
