"""Every chat and text shape, in every file format, trains through the command line on exactly what is meant."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import zstandard

Row = dict[str, Any]

TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | map(attribute='function') | map(attribute='name') | join(' ') }}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML that shows tools and their calls."""


def u(text: str) -> Row:
    return {"role": "user", "content": text}


def a(text: str, **more: Any) -> Row:
    return {"role": "assistant", "content": text, **more}


def turn(role: str, text: str, weight: float = 0.0) -> str:
    """How a turn is expected: what is trained stands in brackets, with its weight unless that is 1."""
    shown = f"{text}<|im_end|>"
    if weight:
        shown = f"[{shown}]" if weight == 1 else f"[{weight:g}: {shown}]"
    return f"<|im_start|>{role}\n{shown}\n"


def chat(*texts: str, system: str = "") -> str:
    """Turns of user and assistant in turn, every answer trained."""
    first = turn("system", system) if system else ""
    return first + "".join(turn("assistant", x, 1) if n % 2 else turn("user", x) for n, x in enumerate(texts))


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}

SHAPES: dict[str, tuple[Row, str]] = {
    "messages": ({"messages": [u("a"), a("b"), u("c"), a("d")]}, chat("a", "b", "c", "d")),
    "loss": (
        {"messages": [u("a"), a("b", loss=False), u("c"), a("d", loss=True)]},
        turn("user", "a") + turn("assistant", "b") + turn("user", "c") + turn("assistant", "d", 1),
    ),
    "loss-of-a-question": (
        {"messages": [{**u("a"), "loss": True}, a("b")]},
        turn("user", "a", 1) + turn("assistant", "b", 1),
    ),
    "loss_scale": (
        {"messages": [u("a"), a("b", loss_scale=0.5), u("c"), a("d", loss_scale=2.0)]},
        turn("user", "a") + turn("assistant", "b", 0.5) + turn("user", "c") + turn("assistant", "d", 2),
    ),
    "weight": (
        {"messages": [u("a"), a("b", weight=0), u("c"), a("d", weight=1)]},
        turn("user", "a") + turn("assistant", "b") + turn("user", "c") + turn("assistant", "d", 1),
    ),
    "weight-of-a-row": (
        {"messages": [u("a"), a("b")], "weight": 0.5},
        turn("user", "a") + turn("assistant", "b", 0.5),
    ),
    "tools": (
        {"messages": [u("a"), a("", tool_calls=[CALL]), {"role": "tool", "content": "2"}, a("b")], "tools": [ADD]},
        turn("system", "add")
        + turn("user", "a")
        + turn("assistant", '<call>add {"x": 1}</call>', 1)
        + turn("tool", "2")
        + turn("assistant", "b", 1),
    ),
    "query-response": (
        {"system": "s", "query": "c", "response": "d", "history": [["a", "b"]]},
        chat("a", "b", "c", "d", system="s"),
    ),
    "sharegpt-pairs": (
        {"system": "s", "conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        chat("a", "b", "c", "d", system="s"),
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        chat("a", "b", system="s"),
    ),
    "alpaca": (
        {"instruction": "c", "input": "e", "output": "d", "history": [["a", "b"]], "system": "s"},
        chat("a", "b", "c\ne", "d", system="s"),
    ),
    "prompt-completion": ({"prompt": "a", "completion": "b"}, chat("a", "b")),
    "prompt-completion-lists": (
        {"prompt": [u("a"), a("b"), u("c")], "completion": [a("d")]},
        turn("user", "a") + turn("assistant", "b") + turn("user", "c") + turn("assistant", "d", 1),
    ),
    "text": ({"text": "(制琴师 planes the top."}, "([制琴师 planes the top.<|im_end|>]"),
}

TABLE: list[Row] = [
    {"instruction": "说“你好”, please", "input": "", "output": "你好，\n我是小琴"},
    {"instruction": "second", "input": "part", "output": "b"},
]
IN_TABLE = [chat("说“你好”, please", "你好，\n我是小琴"), chat("second\npart", "b")]


def lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def separated(path: Path, delimiter: str, encoding: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(TABLE[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(TABLE)


def arrow(path: Path) -> None:
    table = pa.Table.from_pylist(TABLE)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def folder(path: Path) -> None:
    path.mkdir()
    (path / "1.jsonl").write_bytes(lines(TABLE[:1]))
    (path / "2.json").write_bytes(json.dumps(TABLE[1:]).encode())
    (path / "README.md").write_text("About this data.")


FORMATS: dict[str, Callable[[Path], object]] = {
    "lines.jsonl": lambda path: path.write_bytes(lines(TABLE)),
    "array.json": lambda path: path.write_text(json.dumps(TABLE)),
    "lines.json": lambda path: path.write_bytes(lines(TABLE)),
    "pretty.jsonl": lambda path: path.write_text(json.dumps(TABLE, indent=2, ensure_ascii=False), encoding="utf-8"),
    "commas.csv": lambda path: separated(path, ",", "utf-8"),
    "excel.csv": lambda path: separated(path, ",", "utf-8-sig"),
    "chinese.csv": lambda path: separated(path, ",", "gb18030"),
    "wide.csv": lambda path: separated(path, ",", "utf-16"),
    "tabs.tsv": lambda path: separated(path, "\t", "utf-8"),
    "columns.parquet": lambda path: pa.parquet.write_table(pa.Table.from_pylist(TABLE), path),
    "columns.arrow": arrow,
    "packed.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines(TABLE))),
    "packed.json.zst": lambda path: path.write_bytes(zstandard.compress(json.dumps(TABLE).encode())),
    "folder": folder,
}


def trained(job: Any, files: Sequence[Path], *flags: object) -> list[str]:
    """What training on these files has put into the token cache, in the order of the files."""
    cache = job.folder / "cache"
    shards = sorted((cache / "tokens").iterdir())
    words = ["preview", "--json", "--model", job.model, "--data.cache_dir", cache, "--max_length", "128"]
    said = job.call(*words, "--rows", "1000", "--dataset", *files, *flags)
    assert sorted((cache / "tokens").iterdir()) == shards, "not what training used"
    found = [json.loads(line) for line in said.splitlines()]
    return [marked(row["pieces"]) for row in found if row["type"] == "result"]


def marked(pieces: list[dict[str, Any]]) -> str:
    text, before = "", 0.0
    for piece in [*pieces, {"text": "", "weight": 0.0}]:
        if piece["weight"] != before:
            text += "]" * bool(before)
            text += {0.0: "", 1.0: "["}.get(piece["weight"], f"[{piece['weight']:g}: ")
        text, before = text + piece["text"], piece["weight"]
    return text


def one_step(job: Any, files: Sequence[Path], command: str = "sft", **flags: Any) -> None:
    flags = {"max_length": 128, "max_steps": 1, "per_device_train_batch_size": 64, **flags}
    job.run(command=command, dataset=list(files), gradient_accumulation_steps=1, **flags)
    assert job.rows()[-1]["trained_tokens"] > 0


def test_every_shape_trains_exactly_what_is_meant(job: Any):
    template = job.folder / "tools.jinja"
    template.write_text(TEMPLATE)
    files: list[Path] = []
    for name, (row, _) in SHAPES.items():
        files.append(job.folder / f"{name}.jsonl")
        files[-1].write_bytes(lines([row]))
    one_step(job, files, template=template)
    assert trained(job, files, "--template", template) == [expected for _, expected in SHAPES.values()]


def test_every_format_trains_exactly_what_is_meant(job: Any):
    files: list[Path] = []
    for name, write in FORMATS.items():
        files.append(job.folder / name)
        write(files[-1])
    one_step(job, files)
    found = trained(job, files)
    for number, name in enumerate(FORMATS):
        assert found[2 * number : 2 * number + 2] == IN_TABLE, name
    assert len(found) == 2 * len(FORMATS)


def test_plain_text_trains_a_document_a_line_and_a_markdown_file_whole(job: Any):
    files = [job.folder / "lines.txt", job.folder / "page.md", job.folder / "old.txt", job.folder / "zipped.txt.gz"]
    files[0].write_text("first line\n\nsecond line\n")
    files[1].write_text("# Title\n\nBody.\n")
    files[2].write_bytes("(制琴师把云杉面板刨薄，直到它发出声音。".encode("gb18030"))
    files[3].write_bytes(gzip.compress(b"zipped"))
    one_step(job, files, command="pretrain", max_length=128)
    assert trained(job, files, "--stage", "pretrain") == [
        "f[irst line<|im_end|>]",
        "s[econd line<|im_end|>]",
        "#[ Title\n\nBody.\n<|im_end|>]",
        "([制琴师把云杉面板刨薄，直到它发出声音。<|im_end|>]",
        "z[ipped<|im_end|>]",
    ]


def test_columns_are_renamed_and_names_and_system_filled_in(job: Any):
    file = job.folder / "who.jsonl"
    rows = [
        {"ask": "Who are you?", "say": "I am {{NAME}} by {{AUTHOR}}.", "tag": "en"},
        {"ask": "你是谁？", "say": "我是{{NAME}}，由{{AUTHOR}}做的。", "tag": "zh"},
    ]
    file.write_bytes(lines(rows))
    flags = {
        "columns": '{"ask": "query", "say": "response"}',
        "system": "Be kind.",
        "model_name": ["小琴", "Viola"],
        "model_author": "Lab",
    }
    one_step(job, [file], **flags)
    words = [
        word for name, value in flags.items() for word in (f"--{name}", *([value] if name != "model_name" else value))
    ]
    assert trained(job, [file], *words) == [
        chat("Who are you?", "I am Viola by Lab.", system="Be kind."),
        chat("你是谁？", "我是小琴，由Lab做的。", system="Be kind."),
    ]
