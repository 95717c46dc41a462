"""Duplicates are found exactly, near ones as brute force finds them; the first row stays."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier.prepare import chunks
from luthier.prepare.groups import distinct, first_of_equals, join, leading, shared, stand_alone
from luthier.prepare.identity import keys_of
from luthier.prepare.minhash import bands_for, signatures
from luthier.prepare.shingles import Sizes, jaccard, shingle_sets, tokenise
from luthier.prepare.spill import Spill

SIZES = Sizes(3, 5)


@pytest.mark.parametrize(
    ("name", "duplicates"),
    [
        ("alpaca_en_demo", 14),
        ("alpaca_zh_demo", 8),
        ("dpo_en_demo", 5),
        ("dpo_zh_demo", 11),
        ("glaive_toolcall_en_demo", 35),
        ("glaive_toolcall_zh_demo", 43),
    ],
)
def test_identical_rows_of_real_files(test_data: Path, name: str, duplicates: int, tmp_path: Path, capsys: Any) -> None:
    source = test_data / "llamafactory-demo" / f"{name}.json"
    done = run("dedup", capsys, tmp_path / "out", source, flags=["--exact"])
    rows = json.loads(source.read_text(encoding="utf-8"))
    first = list({json.dumps(row, sort_keys=True): row for row in reversed(rows)}.values())[::-1]
    assert done.report["summary"]["duplicates"] == duplicates == len(rows) - len(first)
    kept = list(dict.fromkeys(json.dumps(row, sort_keys=True) for row in rows))
    assert [json.dumps(row, sort_keys=True) for row in done.rows] == kept


def test_medical_dialogues_in_gb18030(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    (source,) = (test_data / "zh-medical-dialogue-gb").glob("*.csv")
    done = run("dedup", capsys, tmp_path / "out", source, flags=["--exact"])
    assert done.report["summary"]["duplicates"] == 378
    assert done.report["faulty"]["counts"] == {"not_utf8": 1}
    assert len(done.rows) == 7644 - 378
    assert done.rows[0]["department"] == "心血管科"


def test_what_makes_rows_identical(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        '{"a": 1, "b": "\\u00e9"}\n{"b":"é","a":1}\n{"a": 1.0, "b": "é"}\n'
        '{"a": 1, "b": "é", "c": null}\n{"a": 2, "b": "é"}\n',
        encoding="utf-8",
    )
    done = run("dedup", capsys, tmp_path / "out", file, flags=["--removed", str(tmp_path / "removed.jsonl")])
    assert done.report["summary"] == {"duplicates": 1, "groups": 1}
    # What stays is written as it was, byte for byte.
    kept = file.read_bytes().splitlines(keepends=True)
    assert done.output == b"".join(kept[:1] + kept[2:])
    removed = json.loads((tmp_path / "removed.jsonl").read_text(encoding="utf-8"))
    assert removed == {
        "file": str(file),
        "line": 2,
        "reason": "duplicate",
        "repeats": f"{file}:1",
        "row": {"b": "é", "a": 1},
    }
    by_b = run("dedup", capsys, tmp_path / "b", file, flags=["--key", "b"])
    assert len(by_b.rows) == 1


def test_rows_that_are_also_in_another_set_go(tmp_path: Path, capsys: Any) -> None:
    valid = write_rows(tmp_path / "valid.jsonl", [{"text": "one"}, {"text": "two"}])
    train = write_rows(
        tmp_path / "train.jsonl", [{"text": "three"}, {"text": "two"}, {"text": "three"}, {"text": "two"}]
    )
    done = run("dedup", capsys, tmp_path / "out", train, flags=["--against", str(valid)])
    assert done.rows == [{"text": "three"}]
    assert done.report["summary"] == {"duplicates": 1, "overlap": 2, "groups": 2}
    assert [row["repeats"] for row in done.report["examples"]["overlap"]] == [f"{valid}:2"] * 2
    strict = run("dedup", capsys, tmp_path / "s", train, flags=["--against", str(valid), "--bad_rows", "strict"])
    assert (strict.code, strict.error["code"], strict.error["where"]) == (3, "overlap", f"{train}:2")


def brute_force(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    """Pairs of texts by the Jaccard similarity of their shingles, in plain Python."""
    sets: list[frozenset[tuple[str, ...]]] = []
    for text in texts:
        text = unicodedata.normalize("NFKC", text).lower()
        tokens = text.split() if text.isascii() else [character for character in text if character.isalnum()]
        size = 3 if text.isascii() else 5
        sets.append(frozenset(tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)))
    holders: dict[tuple[str, ...], list[int]] = {}
    for number, found in enumerate(sets):
        for shingle in found:
            holders.setdefault(shingle, []).append(number)
    shared = Counter(pair for rows in holders.values() for pair in itertools.combinations(rows, 2))
    return {(a, b) for (a, b), n in shared.items() if n / (len(sets[a]) + len(sets[b]) - n) >= threshold}


def variants(count: int, seed: int) -> list[str]:
    """English and Chinese texts, many of them with copies in which some words are changed."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 8))) for _ in range(3000)]
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    texts: list[str] = []
    while len(texts) < count:
        vocabulary, between = rng.choice([(words, " "), (characters, "")])
        base = rng.choices(vocabulary, k=rng.randint(8, 120) if between else rng.randint(12, 300))
        texts.append(between.join(base))
        for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4])):
            copy = list(base)
            for _ in range(rng.randint(0, max(1, len(copy) // 25))):
                at = rng.randrange(len(copy))
                copy[at : at + rng.randint(0, 1)] = rng.choices(vocabulary, k=rng.randint(0, 1))
            texts.append(between.join(copy))
    rng.shuffle(texts)
    return texts[:count]


@pytest.mark.parametrize(("count", "seed"), [(5000, 1), (1200, 2)])
def test_near_duplicates_are_those_of_brute_force(count: int, seed: int, tmp_path: Path, capsys: Any) -> None:
    texts = variants(count, seed)
    truth = brute_force(texts, 0.8)
    first = join(np.arange(count), np.array(sorted(truth)))
    wanted = set(np.flatnonzero(first != np.arange(count)).tolist())
    # The test means something only if there are many pairs on both sides of the threshold.
    assert len(truth) > count / 10 and len(brute_force(texts, 0.7)) - len(truth) > count / 20
    file = write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    removed = tmp_path / "removed.jsonl"
    done = run("dedup", capsys, tmp_path / "out", file, flags=["--near", "--removed", str(removed)])
    lines = [json.loads(line) for line in removed.read_text(encoding="utf-8").splitlines()]
    found = {line["line"] - 1 for line in lines}
    assert len(found & wanted) >= 0.99 * len(wanted)
    assert len(found & wanted) >= 0.99 * len(found)
    assert all(line["similarity"] >= 0.8 for line in lines)
    assert len(done.rows) == count - len(found)


def test_case_punctuation_and_width_do_not_count(tmp_path: Path, capsys: Any) -> None:
    rows = [
        "Hello, world!",
        "hello world",
        "ＨＥＬＬＯ　ｗｏｒｌｄ",
        "你好，世界",
        "你好世界。",
        "...",
        "!!!",
        "",
        "",
        "hello there",
    ]
    file = write_rows(tmp_path / "rows.jsonl", [{"text": text, "n": n % 9} for n, text in enumerate(rows)])
    done = run("dedup", capsys, tmp_path / "out", file, flags=["--near"])
    assert [row["n"] for row in done.rows] == [0, 3, 5, 6, 7, 8, 0]


def test_the_text_of_chats_is_compared_with_all_their_turns(tmp_path: Path, capsys: Any) -> None:
    def chat(answer: str, **more: Any) -> dict[str, Any]:
        long = "Tell me how a violin is made, please, step by step and from the beginning."
        return {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": answer}], **more}

    answer = "First you choose the wood. Then you carve the plates, bend the ribs, glue everything and varnish it."
    file = write_rows(
        tmp_path / "rows.jsonl", [chat(answer, id=1), chat(answer.upper() + "!", id=2), chat("No.", id=3)]
    )
    assert [row["id"] for row in run("dedup", capsys, tmp_path / "out", file, flags=["--near"]).rows] == [1, 3]
    by = run("dedup", capsys, tmp_path / "key", file, flags=["--near", "--key", "id"])
    assert len(by.rows) == 3


def test_bands_find_pairs_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands = bands_for(threshold, 128)
        assert bands.permutations <= 128
        assert bands.found(threshold) >= 0.995
        assert bands.found(threshold - 0.35) < 0.3
    assert bands_for(0.05, 128).rows == 1


def test_signatures_estimate_the_similarity() -> None:
    rng = random.Random(4)
    errors: list[float] = []
    for _ in range(60):
        base = [f"w{rng.randrange(10**6)}" for _ in range(150)]
        other = [word if rng.random() < 0.9 else "x" + word for word in base]
        made = signatures([" ".join(base), " ".join(other)], 512, 3)
        sets = shingle_sets(tokenise([" ".join(base), " ".join(other)], SIZES))
        one, two = np.split(sets.hashes, [sets.counts[0]])
        true = len(np.intersect1d(one, two)) / len(np.union1d(one, two))
        errors.append(float((made[0] == made[1]).mean()) - true)
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.03  # the standard error of 512 independent hashes is at most 0.022


def test_jaccard_of_sets() -> None:
    texts = ["a b c d e", "a b c d f", "x y z", "", "a b c d e"]
    tokens = tokenise(texts, Sizes(2, 2))
    one = shingle_sets([tokens[0], tokens[0], tokens[3], tokens[0]])
    other = shingle_sets([tokens[1], tokens[2], tokens[3], tokens[4]])
    assert jaccard(one, other).tolist() == [3 / 5, 0, 0, 1]


def test_tokens_of_mixed_scripts() -> None:
    texts = ["Don't  stop—NOW", "我爱Python编程", "機械学習のテスト", "a\x1eb", "مرحبا بالعالم", "สวัสดี"]
    found = [(tokens.text, tokens.number, tokens.size) for tokens in tokenise(texts, SIZES)]
    assert found == [
        ("don t stop now", 4, 3),
        ("我 爱 python 编 程", 5, 5),
        ("機 械 学 習 の テ ス ト", 8, 5),
        ("a b", 2, 3),
        ("مرحبا بالعالم", 2, 3),
        ("ส ว ั ส ด ี", 6, 5),
    ]


def test_first_of_equals_in_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 500, 3000)
    expected = np.array([int(np.flatnonzero(values == value)[0]) for value in values])
    for at_once, limit in ((10**6, 10**9), (256, 4096)):
        monkeypatch.setattr("luthier.prepare.groups._MOST_AT_ONCE", at_once)
        keys = Spill(tmp_path / "keys", np.uint64, 2, limit)
        for piece in np.split(values, 30):
            keys.append(keys_of([str(value) for value in piece]))
        assert np.array_equal(first_of_equals(keys), expected)
        assert distinct(keys) == len(set(values.tolist()))
        keys.close()
        assert not (tmp_path / "keys").exists()


def test_rows_that_share_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = np.random.default_rng(2).integers(0, 900, 900, dtype=np.int32)
    expected = np.bincount(groups)[groups] > 1
    for at_once in (10**6, 64):
        monkeypatch.setattr("luthier.prepare.groups.AT_ONCE", at_once)
        assert np.array_equal(shared(groups), expected)
        first = np.minimum(groups, np.arange(900))[100:]
        alone = stand_alone(first, 100)
        assert np.array_equal(leading(first, 100), first[~alone]) and 100 < alone.sum() < 700


def test_join_finds_connected_rows() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        pairs = rng.integers(0, 60, (40, 2))
        reached = np.eye(60, dtype=bool)
        reached[pairs[:, 0], pairs[:, 1]] = reached[pairs[:, 1], pairs[:, 0]] = True
        for _ in range(60):
            reached = reached | (reached @ reached)
        assert np.array_equal(join(np.arange(60), pairs), reached.argmax(axis=1))
        half = join(np.arange(60), pairs[:20])
        assert np.array_equal(join(half, pairs[20:]), reached.argmax(axis=1))


def test_spilled_columns_are_the_same(tmp_path: Path) -> None:
    column, held = Spill(tmp_path / "a", np.uint64, limit=1000), Spill(tmp_path / "b", np.uint64)
    for piece in np.split(np.arange(1000, dtype=np.uint64) ** 2, 20):
        column.append(piece)
        held.append(piece)
    starts, ends = np.array([990, 0, 5]), np.array([1000, 0, 17])
    assert np.array_equal(column.all(), held.all())
    assert np.array_equal(column.take(starts, ends), held.take(starts, ends))
    assert len(column.take(starts, ends)) == 22
    rows = np.array([0, 49, 50, 51, 999])
    assert column.select(rows).tolist() == held.select(rows).tolist() == (rows**2).tolist()
    column.append(np.array([7], np.uint64))
    assert column.all()[-1] == 7 and column.rows == 1001 and sum(map(len, column.blocks())) == 1001
    column.close()


def test_files_may_stand_behind_a_switch(tmp_path: Path, capsys: Any) -> None:
    from luthier.cli import app

    one, two = (write_rows(tmp_path / f"{name}.jsonl", [{"text": "a"}, {"text": name}]) for name in ("one", "two"))
    for words in (
        [str(one), str(two), "--exact"],
        ["--exact", str(one), str(two)],
        ["--exact", "true", "--inputs", str(one), str(two)],
        [str(one), "--key", "text", "--exact", str(two)],
    ):
        assert app.main(["--json", "data", "dedup", *words]) == 0, words
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last["summary"]["duplicates"] == 1 and last["rows"]["read"] == 4
    assert app.main(["--json", "data", "dedup", str(one), "--exact", "maybe"]) == 3  # no such file


def test_removed_rows_name_the_line_they_repeat_wherever_it_stands(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 300)
    monkeypatch.setattr("luthier.prepare.verbs.dedup.AT_ONCE", 37)
    rng = random.Random(6)
    seen: dict[str, str] = {}
    expected: dict[tuple[str, int], str] = {}
    files: list[Path] = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.jsonl")
        lines = ["" if rng.random() < 0.1 else json.dumps({"text": f"row {rng.randrange(150)}"}) for _ in range(200)]
        files[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
        for number, line in enumerate(lines, 1):
            if line in seen:
                expected[str(files[-1]), number] = seen[line]
            elif line:
                seen[line] = f"{files[-1]}:{number}"
    removed = tmp_path / "removed.jsonl"
    done = run("dedup", capsys, tmp_path / "out", *files, flags=["--exact", "--removed", str(removed)])
    told = [json.loads(line) for line in removed.read_text(encoding="utf-8").splitlines()]
    assert {(row["file"], row["line"]): row["repeats"] for row in told} == expected
    assert len(done.rows) == len(seen) and done.report["summary"]["duplicates"] == len(expected)
    first = done.report["tables"][0]["rows"][0]
    assert first["rows that say the same"] == 1 + max(map([*expected.values()].count, expected.values()))
