"""The verb clean: its defaults, each of its settings, and the real files it was made for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workshop import run, write_rows

from luthier.prepare import gaps, language, markup
from luthier.prepare.classical import Classical
from luthier.prepare.spill import Spill


def clean(rows: list[Any], flags: list[str], tmp_path: Path, capsys: Any) -> Any:
    done = run("clean", capsys, tmp_path / "out", write_rows(tmp_path / "in.jsonl", rows), flags=flags)
    assert done.code == 0, done.said
    return done


def test_defaults_repair_and_take_nothing_away(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"id": 1, "messages": [{"role": "user", "content": "cafÃ©?\x07 \n"}, {"role": "assistant", "content": "yes"}]},
        {"prompt": "Q: \t", "completion": " A\n"},
        {"text": "plain {code}", "url": " kept "},
    ]
    done = clean(rows, [], tmp_path, capsys)
    assert [message["content"] for message in done.rows[0]["messages"]] == ["café?", "yes"]
    assert done.rows[1:] == rows[1:]
    assert done.report["summary"] == {"changed": 1, "removed": 0}
    assert done.report["counts"] == {"encoding": 1, "control_characters": 1, "whitespace": 1}
    assert done.report["examples"]["encoding"][0]["before"].startswith("cafÃ©?")
    off = [word for name in ("encoding", "controls") for word in (f"--{name}", "false")]
    done = clean(rows, [*off, "--unicode", "keep", "--whitespace", "keep"], tmp_path, capsys)
    assert done.rows == rows and done.report["summary"]["changed"] == 0


def test_personal_data_is_masked_and_not_shown(tmp_path: Path, capsys: Any) -> None:
    done = clean([{"text": "call 13812345678 or a@b.com"}], ["--mask", "phone"], tmp_path, capsys)
    assert done.rows == [{"text": "call <PHONE> or a@b.com"}]
    assert done.report["counts"] == {"masked_phone": 1} and "13812345678" not in json.dumps(done.report)
    done = clean([{"text": "call 13812345678 or a@b.com"}], ["--mask", "all", "--mask_text", "*"], tmp_path, capsys)
    assert done.rows == [{"text": "call * or *"}]


def test_quality_rules_are_switched_and_counted(tmp_path: Path, capsys: Any) -> None:
    from test_quality import CHINESE, PROSE, REFUSED

    rows = [
        {"text": text}
        for text in (PROSE, CHINESE, REFUSED["c4_curly_bracket"], "too short", "Buy now" + " buy now" * 60)
    ]
    done = clean(rows, ["--quality", "gopher"], tmp_path, capsys)
    assert [row["text"] for row in done.rows] == [PROSE, CHINESE, REFUSED["c4_curly_bracket"]]
    assert done.report["counts"] == {"gopher_word_count": 1, "gopher_stop_words": 1}
    without = ["--quality", "gopher", "--quality_except", "gopher_word_count", "gopher_stop_words"]
    done = clean(rows, without, tmp_path, capsys)
    assert done.report["counts"] == {"gopher_frequent_ngrams": 1}
    done = clean(rows, ["--quality", "c4_curly_bracket"], tmp_path, capsys)
    assert done.report["summary"] == {"changed": 0, "removed": 1}
    wrong = run("clean", capsys, tmp_path / "x", tmp_path / "in.jsonl", flags=["--quality", "gofer"])
    assert wrong.code == 2 and "'gopher'" in str(wrong.error)


def test_lines_are_taken_from_documents_not_from_chats(tmp_path: Path, capsys: Any) -> None:
    page = "Menu\nThis is a sentence with words.\nAnd here is another one of them.\nIt also has a third sentence."
    rows = [{"text": page}, {"messages": [{"role": "user", "content": page}, {"role": "assistant", "content": page}]}]
    done = clean(rows, ["--quality", "c4"], tmp_path, capsys)
    assert done.rows[0]["text"] == page.removeprefix("Menu\n") and done.rows[1] == rows[1]


def test_length_language_and_damage(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"text": "This is surely an English sentence, as anybody can see."},
        {"text": "这是一个中文句子。"},
        {"text": "Dies ist ein deutscher Satz, und er ist nicht lang."},
        {"text": "x\ufffd"},
    ]
    flags = ["--languages", "en", "zh", "--damaged", "drop"]
    done = clean(rows, flags, tmp_path, capsys)
    assert done.rows == rows[:2] and done.report["counts"] == {"language": 1, "damaged": 1}
    assert done.report["examples"]["language"][0]["language"] == "de"
    done = clean(rows, ["--min_words", "9", "--max_characters", "52"], tmp_path, capsys)
    assert done.rows == rows[2:3] or done.rows == rows[1:3]
    assert done.report["counts"] == {"too_long": 1, "too_few_words": 2}


def test_missing_values(tmp_path: Path, capsys: Any) -> None:
    rows = [
        {"text": "a", "age": 10},
        {"text": "n/a", "age": 30},
        {"text": "c", "age": None},
        {"text": "d", "age": "20"},
    ]
    assert len(clean(rows, ["--missing", "drop"], tmp_path, capsys).rows) == 3
    done = clean(rows, ["--missing", "fill", "--missing_columns", "age"], tmp_path, capsys)
    assert [row["age"] for row in done.rows] == [10, 30, 20.0, "20"] and done.report["counts"] == {"filled": 1}
    done = clean(rows, ["--missing", "fill", "--missing_columns", "text", "--fill_with", "nothing"], tmp_path, capsys)
    assert done.rows[1]["text"] == "nothing"
    mode = clean(
        [*rows, {"text": "e", "age": 30}],
        ["--missing", "fill", "--missing_columns", "age", "--fill_with", "mode"],
        tmp_path,
        capsys,
    )
    assert mode.rows[2]["age"] == 30
    refused = run("clean", capsys, tmp_path / "x", tmp_path / "in.jsonl", flags=["--missing", "fill"])
    assert refused.code == 2


def test_outliers(tmp_path: Path, capsys: Any) -> None:
    rows = [{"text": "x" * (10 + number % 5), "meta": {"age": 20 + number % 7}} for number in range(40)]
    rows += [{"text": "x" * 500, "meta": {"age": 24}}, {"text": "x" * 12, "meta": {"age": 900}}]
    done = clean(rows, ["--outliers", "characters", "meta.age"], tmp_path, capsys)
    assert done.rows == rows[:40] and done.report["counts"] == {"outlier": 2}
    done = clean(rows, ["--outliers", "meta.age", "--outlier_action", "clip"], tmp_path, capsys)
    low, high = np.quantile([row["meta"]["age"] for row in rows], [0.25, 0.75])  # type: ignore[index]
    assert done.rows[-1]["meta"]["age"] == high + 1.5 * (high - low) and len(done.rows) == 42


def test_limits_are_the_textbook_ones(tmp_path: Path) -> None:
    values, nothing = Spill(tmp_path / "values", np.float64), Spill(tmp_path / "nothing", np.float64)
    values.append(np.array([1.0, 2, 3, 4, 5, np.nan]))
    nothing.append(np.array([np.nan]))
    assert gaps.limits(values, "iqr") == (2 - 1.5 * 2, 4 + 1.5 * 2)
    low, high = gaps.limits(values, "zscore", 1.0)
    assert (low, high) == pytest.approx((3 - 2**0.5, 3 + 2**0.5))
    assert gaps.limits(nothing, "iqr") == gaps.limits(nothing, "zscore") == (-np.inf, np.inf)
    assert [gaps.is_missing(value) for value in (None, " N/A ", "无", float("nan"), 0, False, "no")] == [True] * 4 + [
        False
    ] * 3


def test_rows_of_which_nothing_is_left_are_dropped(tmp_path: Path, capsys: Any) -> None:
    done = clean([{"text": "<script>x</script><p></p>"}, {"text": "ok"}], ["--html", "true"], tmp_path, capsys)
    assert done.rows == [{"text": "ok"}] and done.report["counts"] == {"html": 1, "emptied": 1}


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Tom &amp; Jerry</p><p>run<br>fast</p>", "Tom & Jerry\nrun\nfast"),
        ("<html><head><title>t</title></head><body>a <b>b</b> c<script>x()</script></body></html>", "a b c"),
        ("<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>", "1 2\n3"),
        ("if a < b and c > d: x &= y", "if a < b and c > d: x &= y"),
        ("see\n```html\n<p>code</p>\n```\n<b>bold</b>", "see\n```html\n<p>code</p>\n```\nbold"),
        ("List<String> x; 中文&nbsp;字", "List<String> x; 中文\xa0字"),
    ],
)
def test_html(text: str, plain: str) -> None:
    assert markup.strip_markup(text) == plain
    assert markup.has_markup(text) or plain == text


def test_classical_pipelines() -> None:
    everything = Classical(lowercase=True, segment=True, remove_punctuation=True, remove_stop_words=True)
    assert everything("The Movie wasn't GOOD, was it?") == "movie good"
    assert everything("我觉得这部电影的剧情非常精彩！") == "觉得 这部 电影 剧情 非常 精彩"
    assert Classical(lowercase=True)("A  B") == "a  b"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("好", "zh"),
        ("這是繁體中文", "zh"),
        ("用 Python 的 pandas.DataFrame 读取数据", "zh"),
        ("これは日本語の文章です", "ja"),
        ("안녕하세요 여러분", "ko"),
        ("The quick brown fox jumps over the lazy dog", "en"),
        ("El perro come la comida en la casa de mi abuela", "es"),
        ("Все счастливые семьи похожи друг на друга", "ru"),
        ("12345 !!", "und"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language.identify(text).code == code


def test_a_medical_dialogue_in_gb18030(test_data: Path, tmp_path: Path, capsys: Any) -> None:
    source = next((test_data / "zh-medical-dialogue-gb").glob("*.csv"))
    done = run("clean", capsys, tmp_path / "out", source, flags=["--mask", "all"])
    assert done.code == 0, done.said
    assert len(done.rows) == 7644 and done.report["faulty"]["counts"] == {"not_utf8": 1}
    assert set(done.rows[0]) == {"department", "title", "ask", "answer"}
    assert (tmp_path / "out" / "out.jsonl").read_text(encoding="utf-8").startswith('{"department":"心血管科"')
    twice = run("dedup", capsys, tmp_path / "two", tmp_path / "out" / "out.jsonl", flags=["--exact"])
    assert twice.report["summary"]["duplicates"] == 378 and len(twice.rows) == 7266
