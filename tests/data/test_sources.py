"""Opening data sets: the notation, every file format, encodings, damage, and bounded memory."""

from __future__ import annotations

import codecs
import gzip
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from luthier.base.errors import ConfigError, DataError, MissingExtra
from luthier.base.records import Fault
from luthier.data.config import BadRows, DataConfig
from luthier.data.sources import DatasetSpec, Row, Rows, open_rows, parse_spec, stream_rows

SHARED = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
ROWS = [{"text": "one"}, {"text": "zwei ü"}, {"text": "三"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(cache_dir=str(tmp_path / "cache"))


def opened(path: Path | str, config: DataConfig) -> Rows:
    return open_rows(parse_spec(str(path), "hf"), config)


def values(path: Path | str, config: DataConfig) -> list[object]:
    """The rows of a set; random access and streaming must agree on them."""
    rows = opened(path, config)
    found = [rows[i] for i in range(len(rows))]
    streamed = list(stream_rows(parse_spec(str(path), "hf"), config))
    assert streamed == found
    return [row.value for row in found]


def faults(rows: list[Row]) -> list[tuple[int, str]]:
    return [(row.where.line, row.value.code) for row in rows if isinstance(row.value, Fault)]


def written(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


# -- the notation


@pytest.mark.parametrize(
    ("text", "kind", "path", "subset", "take"),
    [
        ("owner/set", "hf", "owner/set", None, None),
        ("AI-ModelScope/alpaca-gpt4-data-zh#500", "hf", "AI-ModelScope/alpaca-gpt4-data-zh", None, 500),
        ("ms::owner/set:zh#7", "ms", "owner/set", "zh", 7),
        ("hf::owner/set", "hf", "owner/set", None, None),
        ("shareai-llama3-dpo-zh-en-emoji", "hf", "shareai-llama3-dpo-zh-en-emoji", None, None),
        ("missing.jsonl", "local", "missing.jsonl", None, None),
        ("data/missing.jsonl.gz#5", "local", "data/missing.jsonl.gz", None, 5),
        ("./folder", "local", "./folder", None, None),
        ("/a/b/c", "local", "/a/b/c", None, None),
    ],
)
def test_notation(text: str, kind: str, path: str, subset: str | None, take: int | None) -> None:
    spec = parse_spec(text, "hf")
    assert (spec.kind, spec.path, spec.subset, spec.take) == (kind, path, subset, take)


def test_default_hub_is_a_setting() -> None:
    assert parse_spec("owner/set", "ms").kind == "ms"


@pytest.mark.parametrize("name", ["set#3", "set:x", "hf::set", "set:x#3"])
def test_a_local_path_wins_over_parsing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert parse_spec(name, "hf") == DatasetSpec(name, "local", name, None, None)
    assert parse_spec(f"{name}#2", "hf") == DatasetSpec(f"{name}#2", "local", name, None, 2)


@pytest.mark.parametrize("text", ["owner/set#0", "owner/set#", "owner/set:", "#5", ""])
def test_bad_notation_is_a_usage_error(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_spec(text, "hf")


def test_a_name_too_long_for_a_file_is_no_crash(config: DataConfig) -> None:
    with pytest.raises(DataError, match="no such file"):
        opened("x" * 5000 + ".jsonl", config)


# -- formats


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.zst", "A.JSONL"])
def test_json_lines(name: str, tmp_path: Path, config: DataConfig) -> None:
    data = LINES.encode()
    if name.endswith(".gz"):
        data = gzip.compress(data, mtime=0)
    if name.endswith(".zst"):
        half = len(data) // 2  # two frames, as written by parallel compressors
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    assert values(written(tmp_path / name, data), config) == ROWS


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_under_either_name(name: str, indent: int | None, tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / name, json.dumps(ROWS, indent=indent, ensure_ascii=False))
    assert values(path, config) == ROWS


def test_pretty_printed_objects_one_after_the_other(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.jsonl", "\n".join(json.dumps(row, indent=1) for row in ROWS))
    assert values(path, config) == ROWS
    assert [opened(path, config)[i].where.line for i in range(3)] == [1, 4, 7]


def test_an_array_is_cut_the_same_at_any_block_size(
    tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": 'a "quoted" \\ [bracket] {brace}, 中\n' * n, "list": [[], {"x": []}]} for n in range(5)]
    path = written(tmp_path / "a.json", json.dumps(rows, indent=1, ensure_ascii=False))
    for size in (1, 2, 3, 7, 1000):
        monkeypatch.setattr("luthier.data.encoding.BLOCK", size)
        assert [row.value for row in stream_rows(parse_spec(str(path), "hf"), config)] == rows


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t"), ("b.csv", ";"), ("b.csv", "\t")])
def test_tables_with_a_header(name: str, mark: str, tmp_path: Path, config: DataConfig) -> None:
    text = f'instruction{mark}output\r\n"say ""hi""\nand, go"{mark}hi\r\n\r\nb{mark}\r\n'
    path = written(tmp_path / name, text)
    assert values(path, config) == [
        {"instruction": 'say "hi"\nand, go', "output": "hi"},
        {"instruction": "b", "output": ""},
    ]
    assert [opened(path, config)[i].where.line for i in range(2)] == [2, 5]


def test_two_cells_without_a_header_are_text_and_label(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.tsv", "I like it\tgood\nno\tbad\n")
    assert values(path, config) == [{"text": "I like it", "label": "good"}, {"text": "no", "label": "bad"}]
    named = config.model_copy(update={"columns": {"I like it": "query", "good": "response"}})
    assert values(path, named) == [{"I like it": "no", "good": "bad"}]


@pytest.mark.parametrize("names", ["文本,标签", "review,sentiment", "Title, Body", '"source","target"'])
def test_a_header_of_two_strange_names_is_no_row(names: str, tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.csv", f"{names}\n很好,正面\n不好,负面\n还行,正面\n")
    keys = [name.strip().strip('"') for name in names.split(",")]
    assert values(path, config)[0] == dict(zip(keys, ("很好", "正面"), strict=True))


@pytest.mark.parametrize("first", ["很好,正面", "0.5,fine", "it was nice enough,new"])
def test_a_first_row_that_can_be_no_header_stays_a_row(first: str, tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.csv", f"{first}\n不好,负面\n还行,正面\n")
    assert len(values(path, config)) == 3


def test_broken_csv_records(tmp_path: Path, config: DataConfig) -> None:
    long_cell = "x" * 200_000  # more than the csv module allows by itself
    path = written(tmp_path / "a.csv", f'text,id\nok,1\nthree,2,3\n{long_cell},3\nok,4\n"never closed,5\nlost,6\n')
    rows = opened(path, config)
    assert faults([rows[i] for i in range(len(rows))]) == [(3, "malformed_csv"), (6, "malformed_csv")]
    assert rows[2].value == {"text": long_cell, "id": "3"}


def test_text_files_are_a_document_a_line_and_markdown_one_a_file(tmp_path: Path, config: DataConfig) -> None:
    assert values(written(tmp_path / "a.txt", "one\n\n  two\n"), config) == [{"text": "one"}, {"text": "  two"}]
    assert values(written(tmp_path / "a.md", "# one\n\ntwo\n"), config) == [{"text": "# one\n\ntwo\n"}]


def test_parquet_and_arrow(tmp_path: Path, config: DataConfig) -> None:
    table = pa.Table.from_pylist([{"text": "a", "n": 1, "raw": b"\x00"}, {"text": None, "n": 2, "raw": None}])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    expected = [{"text": "a", "n": 1, "raw": "AA=="}, {"text": None, "n": 2, "raw": None}]
    for name in ("a.parquet", "file.arrow", "stream.arrow"):
        assert values(tmp_path / name, config) == expected


def test_a_table_is_read_anew_when_only_its_content_changed(tmp_path: Path, config: DataConfig) -> None:
    path = tmp_path / "a.parquet"
    for text in ("a", "b"):
        pq.write_table(pa.Table.from_pylist([{"text": text}]), path)
        os.utime(path, (1, 1))
        assert values(path, config) == [{"text": text}]


def test_a_long_table_row_is_a_fault(tmp_path: Path, config: DataConfig) -> None:
    config = config.model_copy(update={"max_row_bytes": 2000})
    pq.write_table(pa.Table.from_pylist([{"text": "a"}, {"text": "b" * 3000}]), tmp_path / "a.parquet")
    first, second = values(tmp_path / "a.parquet", config)
    assert first == {"text": "a"} and isinstance(second, Fault) and second.code == "too_long"


def test_a_folder_is_its_data_files_in_order(tmp_path: Path, config: DataConfig) -> None:
    folder = tmp_path / "set"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jsonl", "a.json", "sub/c.jsonl", "README.md", "LICENSE.txt", "notes.txt", ".hidden.jsonl", "x.pkl"):
        written(folder / name, json.dumps({"text": name}) + "\n")
    for name in ("dataset_info.json", "dataset_dict.json", "state.json", "cache-12ab.arrow", "empty.jsonl"):
        written(folder / name, "{}" * (name != "empty.jsonl"))
    assert values(folder, config) == [{"text": "a.json"}, {"text": "b.jsonl"}, {"text": "sub/c.jsonl"}]
    assert values(f"{folder}:sub", config) == [{"text": "sub/c.jsonl"}]
    assert values(f"{folder}:b", config) == [{"text": "b.jsonl"}]
    assert opened(folder, config)[2].where.file == str(folder / "sub/c.jsonl")
    with pytest.raises(IndexError):
        opened(folder, config)[3]


def test_a_folder_of_text_only(tmp_path: Path, config: DataConfig) -> None:
    written(tmp_path / "b.txt", "b1\nb2\n")
    written(tmp_path / "a.md", "a")
    assert values(tmp_path, config) == [{"text": "a"}, {"text": "b1"}, {"text": "b2"}]


# -- whole files that cannot be read


def test_a_missing_file_is_named_with_its_neighbour(tmp_path: Path, config: DataConfig) -> None:
    written(tmp_path / "train.jsonl", LINES)
    with pytest.raises(DataError, match=r"trian\.jsonl: no such file.*Did you mean '.*train\.jsonl'") as caught:
        opened(tmp_path / "trian.jsonl", config)
    assert caught.value.code == "missing_file" and caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.jsonl", b"", "empty_file"),
        ("a.jsonl", b" \n\n", "empty_file"),
        ("a.json", b"[ ]", "empty_file"),
        ("a.csv", b"text,label\n", "empty_file"),
        ("a.csv", b"text,id,text\na,b,c\n", "malformed_csv"),
        ("a.xyz", b"data", "unknown_format"),
        ("a.pkl", b"\x80\x04]", "unknown_format"),
        ("a.jsonl.gz", b"not gzip", "unreadable_file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode() * 99, mtime=0)[:-20], "unreadable_file"),
        ("a.jsonl.zst", b"not zstandard", "unreadable_file"),
        ("a.parquet", b"PAR1 is how it starts", "unreadable_file"),
        ("a.arrow", b"ARROW1 is how it starts", "unreadable_file"),
        ("a.txt", random.Random(0).randbytes(9000), "undecodable"),
    ],
)
def test_whole_files_that_cannot_be_used(name: str, data: bytes, code: str, tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / name, data)
    with pytest.raises(DataError) as caught:
        opened(path, config)
    assert caught.value.code == code and str(path) in str(caught.value)
    if code != "empty_file":
        with pytest.raises(DataError) as caught:
            list(stream_rows(parse_spec(str(path), "hf"), config))
        assert caught.value.code == code


def test_a_folder_without_data(tmp_path: Path, config: DataConfig) -> None:
    written(tmp_path / "README.md", "nothing")
    with pytest.raises(DataError) as caught:
        opened(tmp_path, config)
    assert caught.value.code == "no_data"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    config = DataConfig(cache_dir=str(written(tmp_path / "file", "in the way")))
    with pytest.raises(DataError, match="--cache_dir") as caught:
        opened(written(tmp_path / "a.jsonl", LINES), config)
    assert caught.value.code == "cache_unwritable"


# -- rows that cannot be read


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b'{"a": 1,}', "malformed_json", "line 2, column 8"),
        ('{"ä": tru}'.encode(), "malformed_json", "line 2, column"),
        (b'["a"]', "not_an_object", "an array"),
        (b"3", "not_an_object", "a number"),
        (b"null", "not_an_object", "null"),
        (b'{"a": "\x00"}', "nul", "NUL"),
        (b'{"a": {"b": ["\\u0000"]}}', "nul", "NUL"),
        (b'{"a": "\\ud800"}', "lone_surrogate", "line 2, column"),
        (b'{"a": NaN}', "malformed_json", "line 2, column 7"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "too_deep", "64"),
        (b'{"a": "' + b"x" * 5000 + b'"}', "too_long", "max_row_bytes"),
    ],
)
def test_faults_of_one_row(line: bytes, code: str, message: str, tmp_path: Path, config: DataConfig) -> None:
    config = config.model_copy(update={"max_row_bytes": 4096})
    path = written(tmp_path / "a.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert values(path, config)[::2] == [{"a": 1}, {"a": 2}]
    fault = opened(path, config)[1].value
    assert isinstance(fault, Fault)
    assert (fault.code, str(fault.where)) == (code, f"{path}:2") and message in fault.message


def test_an_escaped_backslash_is_no_nul(tmp_path: Path, config: DataConfig) -> None:
    assert values(written(tmp_path / "a.jsonl", rb'{"a": "\\u0000"}'), config) == [{"a": r"\u0000"}]


def test_positions_inside_an_array(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.json", '[{"a": 1}, {"a" 2},\n  {"a": 3},,\n {"a": [1,\n  x]}]')
    found = [row.value for row in stream_rows(parse_spec(str(path), "hf"), config)]
    assert [value.message.split(":")[0] for value in found if isinstance(value, Fault)] == [
        "malformed JSON at line 1, column 17",
        "malformed JSON at line 2, column 12",
        "malformed JSON at line 4, column 3",
    ]


@pytest.mark.parametrize("tail", ['{"a": 2', "", ",", '{"a": 2}', '{"a": 2}] x', ']{"a": 2}', "]]"])
def test_an_array_cut_short_or_followed_by_something(tail: str, tmp_path: Path, config: DataConfig) -> None:
    found = values(written(tmp_path / "a.json", '[{"a": 1},' + tail), config)
    assert found[0] == {"a": 1}
    assert isinstance(found[-1], Fault) and found[-1].code == "malformed_json"


@pytest.mark.parametrize("policy", ["strict", "drop", "fix"])
def test_crlf_and_invalid_bytes_by_policy(policy: BadRows, tmp_path: Path, config: DataConfig) -> None:
    config = config.model_copy(update={"bad_rows": policy})
    rows = opened(written(tmp_path / "a.jsonl", b'{"a": 1}\n{"a": 2}\r\n{"a": "\xff!"}\n'), config)
    found = [rows[i] for i in range(3)]
    repairs = [[fault.code for fault in row.repairs] for row in found]
    if policy == "strict":
        assert faults(found) == [(2, "crlf"), (3, "invalid_utf8")]
    else:
        assert faults(found) == [(3, "invalid_utf8")] and repairs == [[], ["crlf"], []]


CHINESE = "".join(
    json.dumps({"text": f"第{n}句：我们在学习制作小提琴的方法。"}, ensure_ascii=False) + "\n" for n in range(9)
)


@pytest.mark.parametrize(
    ("encoding", "code"),
    [
        ("utf-8-sig", "byte_order_mark"),
        ("utf-16", "not_utf8"),
        ("utf-16-be", "not_utf8"),
        ("utf-16-le", "not_utf8"),
        ("utf-32", "not_utf8"),
        ("gb18030", "not_utf8"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_encodings_are_detected_and_said(
    encoding: str, code: str, name: str, tmp_path: Path, config: DataConfig
) -> None:
    data = CHINESE.encode(encoding)
    path = written(tmp_path / name, gzip.compress(data, mtime=0) if name.endswith("gz") else data)
    assert values(path, config) == [json.loads(line) for line in CHINESE.splitlines()]
    rows = opened(path, config)
    assert [[fault.code for fault in rows[i].repairs] for i in range(2)] == [[code], []]
    with pytest.raises(DataError) as caught:
        opened(path, config.model_copy(update={"bad_rows": "strict"}))
    assert caught.value.code == code


def test_a_row_damaged_inside_another_encoding(tmp_path: Path, config: DataConfig) -> None:
    lines = CHINESE.encode("gb18030").split(b"\n")
    lines[3] = lines[3].replace(b"\xa1\xa3", b"\xff\xff")
    config = config.model_copy(update={"bad_rows": "drop"})
    rows = opened(written(tmp_path / "a.jsonl", b"\n".join(lines)), config)
    assert faults([rows[i] for i in range(len(rows))]) == [(4, "invalid_utf8")]


def test_few_odd_bytes_are_damage_and_no_encoding(tmp_path: Path, config: DataConfig) -> None:
    (found,) = values(written(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n'), config)
    assert isinstance(found, Fault) and found.code == "invalid_utf8"


@pytest.mark.skipif(not (SHARED / "charset-samples").is_dir(), reason="no shared data")
def test_charset_samples(config: DataConfig) -> None:
    starts = {
        "chinese": "維基大典",
        "korean": "역사적 예수",
        "greek": "Η ελληνική",
        "arabic-1": "بالموازاة",
        "turkish": "İstanbul",
    }
    for name, start in starts.items():
        first = opened(SHARED / "charset-samples" / f"sample-{name}.txt", config)[0].value
        assert isinstance(first, dict) and str(first["text"]).startswith(start)


# -- the JSON test suite


SUITE = SHARED / "jsontestsuite" / "test_parsing"


@pytest.mark.skipif(not SUITE.is_dir(), reason="no shared data")
def test_json_that_must_be_refused(config: DataConfig) -> None:
    files = sorted(SUITE.glob("n_*.json"))
    assert len(files) == 188
    for path in files:
        try:
            rows = opened(path, config)
        except DataError:
            continue
        assert any(isinstance(rows[i].value, Fault) for i in range(len(rows))), path.name


@pytest.mark.skipif(not SUITE.is_dir(), reason="no shared data")
def test_json_that_must_be_read(config: DataConfig) -> None:
    for path in sorted(SUITE.glob("y_*.json")):
        expected = json.loads(path.read_bytes())
        expected = expected if isinstance(expected, list) else [expected]
        if not expected:
            continue
        found = values(path, config)
        assert len(found) == len(expected), path.name
        for value, truth in zip(found, expected, strict=True):
            if isinstance(truth, dict) and "\\u0000" not in path.read_text():
                assert value == truth, path.name
            else:
                assert isinstance(value, Fault) and value.code in ("not_an_object", "nul"), path.name


# -- random access, fingerprints, sharing


def read_first(rows: Rows, queue: multiprocessing.Queue[object]) -> None:
    queue.put(rows[len(rows) - 1].value)


def test_rows_survive_pickling_and_forking(tmp_path: Path, config: DataConfig) -> None:
    rows = opened(written(tmp_path / "a.jsonl", LINES), config)
    assert rows[0].value == ROWS[0]
    assert pickle.loads(pickle.dumps(rows))[2] == rows[2]
    queue: multiprocessing.Queue[object] = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=read_first, args=(rows, queue))
    process.start()
    assert queue.get(timeout=60) == ROWS[2]
    process.join()
    with pytest.raises(IndexError):
        rows[3]


def test_the_fingerprint_follows_content_and_options_only(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.jsonl", LINES)
    first = opened(path, config).fingerprint
    os.utime(path, (1, 1))
    assert opened(written(tmp_path / "b.jsonl", LINES), config).fingerprint == first == opened(path, config).fingerprint
    changed = [config.model_copy(update={"bad_rows": "drop"}), config.model_copy(update={"max_row_bytes": 2000})]
    others = {opened(path, other).fingerprint for other in changed}
    others.add(opened(written(path, LINES.replace("one", "two")), config).fingerprint)
    assert len(others | {first}) == 4


def test_a_plain_file_is_not_copied_and_the_index_is_made_once(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.jsonl", LINES)
    opened(path, config)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    assert [file.name for file in made] == ["index.npy"]
    opened(path, config)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*") if file.is_file()} == made


def test_streaming_reads_no_further(tmp_path: Path, config: DataConfig) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for name in "abc":
        written(folder / f"{name}.jsonl", "".join(json.dumps({"n": f"{name}{i}"}) + "\n" for i in range(4)))
    written(folder / "d.jsonl.gz", b"broken")
    spec = parse_spec(str(folder), "hf")
    everything = [f"{name}{i}" for name in "abc" for i in range(4)]
    rows = stream_rows(spec, config)
    for expected in everything:
        assert next(rows).value == {"n": expected}
    assert not (tmp_path / "cache").exists()


# -- bounded memory

MEASURE = """
import resource, sys, json
from luthier.data.config import DataConfig
from luthier.data.sources import open_rows, parse_spec, stream_rows
config = DataConfig(cache_dir=sys.argv[2])
spec = parse_spec(sys.argv[1], "hf")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
rows = open_rows(spec, config)
codes = [getattr(rows[i].value, "code", "ok") for i in range(0, len(rows), max(1, len(rows) // 1000))]
count = sum(1 for _ in stream_rows(spec, config))
print(json.dumps({"grown": peak() - before, "rows": len(rows), "streamed": count, "codes": sorted(set(codes))}))
"""


def measure(path: Path, cache: Path) -> dict[str, object]:
    command = [sys.executable, "-c", MEASURE, str(path), str(cache)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_200_mib_line_is_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    before = {"a.json": b'[{"text": "a"}, ', "a.csv": b"text\n"}.get(name, b'{"text": "a"}\n')
    after = b"]" if name == "a.json" else b""
    with (tmp_path / name).open("wb") as stream:
        stream.write(before + b'{"text": "' * (name != "a.csv"))
        for _ in range(200):
            stream.write(b"x" * 2**20)
        stream.write(b'"}' * (name != "a.csv") + after)
    found = measure(tmp_path / name, tmp_path / "cache")
    assert "too_long" in found["codes"]
    assert found["rows"] == found["streamed"] == (1 if name == "a.csv" else 2)
    assert found["grown"] < 150


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_million_brackets_are_refused(name: str, tmp_path: Path) -> None:
    brackets = "[" * 10**6 + "]" * 10**6
    data = '{"a": ' + brackets + "}\n" if name == "a.jsonl" else '[{"a": ' + brackets + "}]"
    found = measure(written(tmp_path / name, data), tmp_path / "cache")
    assert found["codes"] == ["too_deep"] and found["grown"] < 100


def test_a_million_tiny_rows_need_little_memory(tmp_path: Path) -> None:
    found = measure(written(tmp_path / "a.jsonl", b'{"text": "hi"}\n' * 10**6), tmp_path / "cache")
    assert found["rows"] == found["streamed"] == 10**6 and found["codes"] == ["ok"]
    assert found["grown"] < 200


# -- hubs, which no test can reach


def test_modelscope_is_an_extra(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(MissingExtra, match=r"luthier\[hub\]"):
        opened("ms::owner/set", config)


def test_a_modelscope_set(tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_parquet(str(parquet(tmp_path)), cache_dir=str(tmp_path / "hub"))

    class MsDataset:
        ds_instance = table

        @staticmethod
        def load(path: str, subset_name: str, use_streaming: bool, cache_dir: str | None) -> object:
            assert (path, subset_name) == ("owner/set", "zh")
            return MsDataset()

    module = types.ModuleType("modelscope.msdatasets")
    module.MsDataset = MsDataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", types.ModuleType("modelscope"))
    monkeypatch.setitem(sys.modules, "modelscope.msdatasets", module)
    assert values("ms::owner/set:zh", config) == [{"text": "a"}, {"text": "b"}]


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist([{"text": "a"}, {"text": "b"}]), folder / "hub.parquet")
    return folder / "hub.parquet"


def test_a_hub_set_is_its_train_split(tmp_path: Path, config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_parquet(str(parquet(tmp_path)), cache_dir=str(tmp_path / "hub"))
    splits = {"test": table.select([1]), "train": table}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    assert values("owner/set", config) == [{"text": "a"}, {"text": "b"}]
    assert pickle.loads(pickle.dumps(opened("owner/set", config)))[1].value == {"text": "b"}
    splits["validation"] = splits.pop("train")
    with pytest.raises(DataError, match="test, validation"):
        opened("owner/set", config)


def test_a_hub_that_cannot_be_reached(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'owner/set' on the Hub (offline)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"No local file or folder has this name.*Couldn't reach") as caught:
        opened("owner/set", config)
    assert caught.value.code == "hub_unavailable"


def test_no_byte_order_mark_reaches_the_rows(tmp_path: Path, config: DataConfig) -> None:
    path = written(tmp_path / "a.csv", codecs.BOM_UTF8 + b"instruction,output\na,b\n")
    assert values(path, config) == [{"instruction": "a", "output": "b"}]
