"""The nano model's training data: choose, clean and convert public sets whose licences allow shipping the weights.

    python recipes/nano/data.py --source ../shared/data --output data

Writes text.jsonl and held_en.jsonl, held_zh.jsonl for pretraining; chat.jsonl and held_chat.jsonl for the chat phase;
sources.json, which the model card lists.  The same files in give the same files out.

Left out on purpose: texts whose owners reserve their rights (modern renderings of classical Chinese), answers written
by other companies' models, patients' questions, and sets that people measure models with, except where the pretraining
text holds their paragraphs anyway (CMRC 2018).
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

import yaml

HERE = Path(__file__).parent
OURS = "written for Luthier", "Apache-2.0"
LEFT_OUT = ("NiuTrans",)
CHINESE = re.compile("[\u4e00-\u9fff]")

Turns = list[str]
"""User and assistant in turn, the user first."""


@dataclass(slots=True)
class Source:
    """One line of the card's list."""

    name: str
    licence: str
    use: str
    rows: int = 0
    size: int = 0


class Book:
    """Rows by file, and what each source gave."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, object]]] = {}
        self.sources: dict[tuple[str, str], Source] = {}

    def add(self, file: str, row: dict[str, object], name: str, licence: str) -> None:
        self.rows.setdefault(file, []).append(row)
        if file in ("text", "chat"):
            use = "pretraining" if file == "text" else "chat"
            source = self.sources.setdefault((name, use), Source(name, licence, use))
            source.rows += 1
            source.size += len(json.dumps(row, ensure_ascii=False).encode())


def read_lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# Pretraining text


def texts(source: Path, book: Book) -> None:
    """bilingual-lm without what may not be used, cleaned; its validation rows stay apart, cleaned the same way."""
    trained: set[str] = set()  # nothing twice, and nothing held out that was trained on
    for language in ("en", "zh"):
        for file, part in (("text", "train"), (f"held_{language}", "valid")):
            for row in read_lines(source / "bilingual-lm" / f"{language}_{part}.jsonl"):
                if row["source"].startswith(LEFT_OUT):
                    continue
                text = clean(row["text"], row["source"])
                if len(text) >= 20 and text not in trained:
                    if part == "train":
                        trained.add(text)
                    book.add(file, {"text": text, "source": row["source"]}, row["source"], row["license"])
    for path in sorted((HERE / "text").glob("prose.*")):
        for text in path.read_text(encoding="utf-8").splitlines():
            book.add("text", {"text": text, "source": OURS[0]}, *OURS)


def clean(text: str, source: str) -> str:
    """The prose of a document: code, tables and formulas of manuals and the marks of a tokenised corpus left out."""
    if source.startswith("wikitext"):
        return clean_wikitext(text)
    if source.startswith(("d2l", "pingcap")):
        return clean_manual(text)
    return text.strip()


def clean_wikitext(text: str) -> str:
    """Text again out of tokens; sentences with words that the corpus has struck out are left out."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    paragraphs: list[str] = []
    for line in text.split("\n"):
        heading = re.fullmatch(r"(?:= )+(.*?)(?: =)+", line.strip())
        sentences = re.split(r"(?<= [.!?]) ", heading[1] if heading else line.strip())
        kept = " ".join(sentence for sentence in sentences if "<unk>" not in sentence)
        paragraphs.append(joined(kept))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(paragraphs)).strip()


def joined(text: str) -> str:
    """Punctuation back to the words it belongs to."""
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    text = re.sub(r" ('(?:s|m|d|t|re|ve|ll)\b)", r"\1", text)
    return re.sub(r'" ([^"]*?) "', r'"\1"', text).strip()


def clean_manual(text: str) -> str:
    """Running text of a manual.  A document may begin in the middle of a code block."""
    kept: list[str] = []
    inside = False
    for line in text.split("\n"):
        mark = line.strip().lstrip("> ")  # also inside a quotation
        if re.match("```[^`]*$", mark):
            if not inside and mark == "```":
                kept.clear()  # this ends a block that began before the document did
            else:
                inside = not inside
            continue
        if not inside and not mark.startswith(
            ("[Discussions", "|", "<", "{{<", "![", "#@tab", ":begin_tab:", ":end_tab:", ":label:")
        ):
            kept.append(line.rstrip())
    text = re.sub(r"\$\$.*?\$\$", "", "\n".join(kept), flags=re.DOTALL)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links
    text = re.sub(r":(?:\w+):`[^`]*`", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


# Chats


def chats(source: Path, book: Book) -> None:
    """Instructions and conversations; one in forty of the public ones is held out."""
    held_texts = {row["text"].replace(" ", "") for row in read_lines(source / "bilingual-lm" / "zh_valid.jsonl")}
    found: list[tuple[Turns, str, str]] = []
    found += ((turns, "databricks-dolly-15k (part)", "CC BY-SA 3.0") for turns in dolly(source))
    found += ((turns, "self-instruct seed tasks", "Apache-2.0") for turns in seeds(source))
    found += ((turns, "KdConv dialogues", "Apache-2.0") for turns in kdconv(source, held_texts))
    found += ((turns, "chatterbot-corpus (English)", "BSD-3-Clause") for turns in small_talk(source))
    found += ((turns, "CMRC 2018, questions", "CC BY-SA 4.0") for turns in cmrc(source, held_texts))
    found += ((turns, "chinese-poetry 宋词", "MIT") for turns in poems(source))
    for turns, name, licence in found:
        held = blake2b(turns[0].encode(), digest_size=2).digest()[0] % 40 == 0
        book.add("held_chat" if held else "chat", chat_row(turns), name, licence)
    for row in read_lines(HERE / "text" / "dialogues.jsonl"):
        book.add("chat", chat_row([row["query"], row["response"]]), *OURS)


def chat_row(turns: Turns) -> dict[str, object]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def dolly(source: Path) -> Iterator[Turns]:
    """Short answers to questions that need nothing beside them."""
    for row in read_lines(source / "dolly-ir" / "dolly_instruction_response.jsonl"):
        needs_more = re.search(
            r"passage|paragraph|following|given|this text|the text|article", row["instruction"], re.I
        )
        if not needs_more and len(row["instruction"]) <= 200:
            yield [row["instruction"].strip(), row["response"].strip()]


def seeds(source: Path) -> Iterator[Turns]:
    """The hand-written tasks that Self-Instruct starts from."""
    for row in map(json.loads, (source / "self-instruct/data/seed_tasks.jsonl").read_text("utf-8").splitlines()):
        first = row["instances"][0]
        question, answer = f"{row['instruction']}\n{first['input']}".strip(), first["output"].strip()
        if 0 < len(answer) <= 600 and len(question) <= 600 and not re.search(r"def |#include|SELECT ", answer):
            yield [question, answer]


def kdconv(source: Path, held_texts: set[str]) -> Iterator[Turns]:
    """Conversations on films, music and travel, but for those of the validation text."""
    for path in sorted((source / "kdconv").glob("*/*.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            turns = [message["message"].strip() for message in row["messages"]]
            if "\n".join(turns).replace(" ", "") not in held_texts:
                yield turns[: len(turns) // 2 * 2]


def small_talk(source: Path) -> Iterator[Turns]:
    """Question and answer from the topics that do not speak of the machine itself."""
    topics = ("conversations", "food", "greetings", "health", "history", "literature", "science", "sports", "trivia")
    for topic in topics:
        path = source / "chatterbot-corpus" / "english" / f"{topic}.yml"
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            pair = [str(turn).strip() for turn in turns[:2]]
            about_itself = re.search(
                r"\b(robot|bot|program|computer|machine|chatterbot|software)s?\b", " ".join(pair), re.I
            )
            if len(pair) == 2 and not about_itself:
                yield pair


def cmrc(source: Path, held_texts: set[str]) -> Iterator[Turns]:
    """One sentence, one question, and the words of the sentence that answer it."""
    for part in ("dev", "trial"):
        path = source / "cmrc2018" / "squad-style-data" / f"cmrc2018_{part}.json"
        for paragraph in (p for article in json.loads(path.read_text("utf-8"))["data"] for p in article["paragraphs"]):
            if paragraph["context"].replace(" ", "") in held_texts:
                continue
            sentences = re.findall(r"[^。！？]+[。！？]?", paragraph["context"])
            for asked in paragraph["qas"]:
                answer = asked["answers"][0]["text"].strip()
                around = next((sentence.strip() for sentence in sentences if answer in sentence), "")
                if 1 < len(answer) <= 30 and 15 <= len(around) <= 120:
                    yield [f"{around}\n{asked['question'].strip()}", answer]


def poems(source: Path) -> Iterator[Turns]:
    """Every tenth ci poem, asked for by its tune."""
    rows = read_lines(source / "bilingual-lm" / "zh_train.jsonl")
    for row in [row for row in rows if row["source"].endswith("宋词")][::10]:
        title, _, poem = row["text"].partition("\n")
        tune = title.split("　")[0].strip()
        if CHINESE.match(tune) and 20 <= len(poem) <= 160:
            yield [f"写一首《{tune}》。", poem.strip()]


def write(folder: Path, book: Book) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in book.rows.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    listed = [asdict(source) for source in book.sources.values()]
    (folder / "sources.json").write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("../shared/data"), help="folder of the public sets")
    parser.add_argument("--output", type=Path, default=Path("data"), help="folder to write to")
    options = parser.parse_args(argv)
    book = Book()
    texts(options.source, book)
    chats(options.source, book)
    write(options.output, book)
    for source in book.sources.values():
        print(f"{source.use:12} {source.name:42} {source.licence:34} {source.rows:6,} rows {source.size:11,} bytes")


if __name__ == "__main__":
    main()
