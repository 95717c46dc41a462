"""Augmenting rows of every kind, with their labels and spans as they must be."""

from __future__ import annotations

import collections
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier import prepare
from luthier.prepare import segment
from luthier.prepare.tagged import spans_of

_BMES = re.compile(r"(?:O|S-(\w+)|B-(\w+)(?: M-\2)* E-\2)(?: |$)")


def _valid(tags: Sequence[str]) -> bool:
    return _BMES.sub("", " ".join(tags)) == ""


def _resumes(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        pairs = [line.split(" ") for line in block.splitlines()]
        rows.append({"tokens": [pair[0] for pair in pairs], "tags": [pair[1] for pair in pairs]})
    return rows


def test_tagged_resumes_keep_their_spans(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    rows = _resumes(test_data / "resume-ner-zh/dev.char.bmes")
    assert all(_valid(row["tags"]) for row in rows)
    file = write_rows(tmp_path / "resume.jsonl", rows)
    synonyms = tmp_path / "s.txt"
    synonyms.write_text("公司 企业\n工作 任职\n毕业 结业\n", encoding="utf-8")
    methods = ["--methods", "synonym", "insert", "delete", "swap", "mask", "recombine", "--copies", "6"]
    flags = [*methods, "--synonyms", str(synonyms), "--method_column", "method", "--mask", "某"]
    done = run("augment", capsys, tmp_path / "out", file, flags=flags)
    assert done.code == 0, done.said
    copies = [row for row in done.rows if "method" in row]
    assert len(copies) > 4 * len(rows) and len(done.rows) - len(copies) == len(rows)
    known = {"".join(row["tokens"][a:b]) for row in rows for a, b, _ in spans_of(row["tags"])}
    position = -1
    for row in done.rows:
        assert len(row["tokens"]) == len(row["tags"]) and _valid(row["tags"])
        mentions = ["".join(row["tokens"][a:b]) for a, b, _ in spans_of(row["tags"])]
        if "method" not in row:
            position += 1
            original = [(kind, b - a) for a, b, kind in spans_of(row["tags"])]
            words = collections.Counter(mentions)
        else:
            assert known.issuperset(mentions)
            kinds = [kind for _, _, kind in spans_of(row["tags"])]
            assert kinds == [kind for kind, _ in original]
            if row["method"] != "recombine":
                assert collections.Counter(mentions) == words
    assert {row["method"] for row in copies} == {"synonym", "insert", "delete", "swap", "mask", "recombine"}


def test_places_in_text_move_with_their_spans(tmp_path: Path, capsys: Any) -> None:
    text = "Yesterday Ada Lovelace travelled from London to Paris with many heavy books"
    names = ["Ada Lovelace", "London", "Paris"]
    spans = [{"start": text.index(name), "end": text.index(name) + len(name), "label": name} for name in names]
    file = write_rows(tmp_path / "f.jsonl", [{"text": text, "spans": spans, "n": n} for n in range(20)])
    flags = ["--methods", "delete", "swap", "--copies", "2", "--strength", "0.4", "--originals", "false"]
    done = run("augment", capsys, tmp_path / "out", file, flags=flags)
    assert len(done.rows) == 40
    for row in done.rows:
        assert row["text"] != text
        assert [row["text"][span["start"] : span["end"]] for span in row["spans"]] == names


def test_labels_stay_and_sentences_come_from_the_same_class(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"text": f"{kind} one {n}. {kind} two {n}. {kind} three {n}.", "label": kind}
        for kind in ("good", "bad")
        for n in range(10)
    ]
    file = write_rows(tmp_path / "f.jsonl", rows)
    flags = ["--methods", "recombine", "--originals", "false", "--copies", "3"]
    done = run("augment", capsys, tmp_path / "out", file, flags=flags)
    assert len(done.rows) > 50
    for row in done.rows:
        assert row["text"].count(row["label"]) == 3 and len(set(re.findall(r"\d", row["text"]))) <= 2


def test_answers_are_left_alone_unless_they_are_named(tmp_path: Path, capsys: Any) -> None:
    messages = [
        {"role": "user", "content": "please tell me about trees"},
        {"role": "assistant", "content": "trees are tall plants"},
    ]
    file = write_rows(tmp_path / "f.jsonl", [{"messages": messages}])
    done = run("augment", capsys, tmp_path / "a", file, flags=["--methods", "swap", "--originals", "false"])
    assert done.rows[0]["messages"][1] == messages[1] and done.rows[0]["messages"][0] != messages[0]
    flags = ["--methods", "swap", "--originals", "false", "--uses", "answer"]
    done = run("augment", capsys, tmp_path / "b", file, flags=flags)
    assert done.rows[0]["messages"][0] == messages[0] and done.rows[0]["messages"][1] != messages[1]


def test_what_cannot_change_is_counted(tmp_path: Path, capsys: Any) -> None:
    file = write_rows(tmp_path / "f.jsonl", [{"text": "12345"}, {"tokens": ["a", "b"], "tags": ["O"]}])
    done = run("augment", capsys, tmp_path / "out", file, flags=[])
    assert len(done.rows) == 2 and done.report["counts"] == {"nothing_to_change": 2}
    assert done.report["notes"][0].startswith("2 copies were not made")


def test_paraphrase_and_back_translation_through_a_callable(tmp_path: Path) -> None:
    asked: list[Any] = []

    def ask(chats: Sequence[Sequence[Mapping[str, str]]], schema: Any) -> list[str]:
        asked.extend(chats)
        texts = [(chat[0]["content"], chat[1]["content"]) for chat in chats]
        return [
            "" if "refuse" in text else f'{{"text": "{"T" if "Translate" in system else "P"}({text})"}}'
            for system, text in texts
        ]

    rows = [{"text": "a b", "label": "x"}, {"text": "refuse", "label": "y"}, {"tokens": ["a"], "tags": ["O"]}]
    file, out = write_rows(tmp_path / "f.jsonl", rows), tmp_path / "o.jsonl"
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    settings: Any = {"methods": ("paraphrase", "back_translate"), "copies": 2, "endpoint": endpoint}
    prepare.augment(file, output=out, ask=ask, originals=False, **settings)
    assert out.read_text(encoding="utf-8").splitlines() == [
        '{"text":"P(a b)","label":"x"}',
        '{"text":"T(T(a b))","label":"x"}',
    ]
    assert not any("tokens" in str(chat) for chat in asked) and "into Chinese" in str(asked)


def test_pictures(tmp_path: Path, capsys: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "p").mkdir()
    image.fromarray(pixels).save(tmp_path / "p/one.png")
    (tmp_path / "p/bad.png").write_bytes(b"no picture")
    rows = [
        {"images": ["p/one.png"], "text": "<image>", "n": 0},
        {"image": "p/one.png", "bbox": [1, 2, 3, 4], "n": 1},
        {"image": "p/bad.png", "n": 2},
        {"image": "https://a.b/c.png", "n": 3},
    ]
    file = write_rows(tmp_path / "f.jsonl", rows)
    folder = tmp_path / "changed"
    flags = ["--methods", "crop", "rotate", "flip", "noise", "--copies", "4", "--image_dir", str(folder)]
    done = run(
        "augment", capsys, tmp_path / "out", file, flags=[*flags, "--originals", "false", "--method_column", "m"]
    )
    assert done.code == 0, done.said
    made: dict[str, Any] = {}
    for row in (row for row in done.rows if row["n"] == 0):
        with image.open(row["images"][0]) as picture:
            made[row["m"]] = picture.copy()
    assert set(made) == {"crop", "rotate", "flip", "noise"}
    assert (np.asarray(made["flip"]) == pixels[:, ::-1]).all()
    assert made["crop"].size == (54, 36) and made["noise"].size == (60, 40) and made["rotate"].size < (60, 40)
    noise = np.asarray(made["noise"]).astype(int) - pixels
    assert 5 < noise.std() < 12 and abs(noise.mean()) < 1
    assert {row["m"] for row in done.rows if row["n"] == 1} == {"noise"}  # the box would no longer fit
    assert {row["n"] for row in done.rows} == {0, 1} and done.report["counts"]["bad_media"] > 0
    before = {path: path.read_bytes() for path in folder.iterdir()}
    run("augment", capsys, tmp_path / "again", file, flags=flags)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "synonym"], "need synonyms"),
        (["--methods", "flip"], "image_dir"),
        (["--methods", "paraphrase"], "an endpoint is needed"),
        (["--methods", "synonym", "--synonyms", "no-such-file"], "no synonyms here"),
    ],
)
def test_refusals(flags: list[str], message: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    file = write_rows(tmp_path / "f.jsonl", [{"text": "x"}])
    done = run("augment", capsys, tmp_path / "out", file, flags=flags)
    assert done.code == 2 and message in done.error["what"]


def test_another_list_of_synonyms_is_another_step_of_a_recipe(tmp_path: Path, capsys: Any) -> None:
    from luthier.cli import app

    words = tmp_path / "words.list"
    file, out = write_rows(tmp_path / "f.jsonl", [{"text": "a big tree"}]), tmp_path / "o.jsonl"
    recipe = tmp_path / "r.yaml"
    step = f"{{methods: [synonym], originals: false, synonyms: ['{words}']}}"
    recipe.write_text(f"inputs: ['{file}']\noutput: '{out}'\nsteps:\n  - augment: {step}\n", encoding="utf-8")
    for other in ("large", "tall"):
        words.write_text(f"big {other}\n", encoding="utf-8")
        assert app.main(["data", "run", str(recipe)]) == 0
        assert out.read_text(encoding="utf-8") == f'{{"text":"a {other} tree"}}\n'
    over = run(
        "augment", capsys, tmp_path, file, flags=["--methods", "synonym", "--synonyms", str(file)], name="f.jsonl"
    )
    assert over.error["code"] == "would_overwrite"


def test_a_package_that_is_missing_where_rows_are_changed_is_named(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker meets the error, and it is the same one here."""
    segment.forget()
    monkeypatch.setitem(sys.modules, "jieba", None)
    file = write_rows(tmp_path / "f.jsonl", [{"text": "我是小琴，来自琴匠工坊。"}])
    done = run("augment", capsys, tmp_path / "out", file)
    assert done.code == 2 and done.error["code"] == "missing_extra"
    assert "needs the package 'jieba'" in done.error["what"] and "luthier[data]" in done.error["fix"]
