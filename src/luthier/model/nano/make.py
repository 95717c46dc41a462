"""Make the nano base model: bundled text -> tokenizer -> tiny Qwen2-shaped model -> pretraining -> model folder.

The result is a plain transformers folder.  How the model is trained is handed in, because this room lies below the
one that trains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from luthier.model.load import quiet
from luthier.model.nano import grammar

TEXT = Path(__file__).parent / "text"
"""The bundled text; see its README."""

SPECIAL = END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BROKEN = "\ufffd"  # what a token decodes to that is only a part of a character
RARE = 8  # occurrences in the text
DRILLED = 24  # tokens in one drill

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without a default system message."""

# Words with the space before them, single digits, runs of punctuation, line breaks, spaces.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

README = """# nano

A language model of {parameters:,} parameters, made by `luthier quickstart` on this machine in about a minute, from
about {kilobytes} kB of simple Chinese and English text bundled with Luthier (Apache-2.0, written for it).

It exists to show the whole fine-tuning job offline. It knows a few hundred everyday sentences by heart, mixes them up
in new places, and has no knowledge of the world, no reasoning and no safety training. Do not use its answers for
anything.

Shape: Qwen2, {layers} layers, width {hidden}, {heads} heads ({kv_heads} for keys and values), {vocabulary} tokens,
tied embeddings, context {context}. Trained {steps} steps, seed {seed}. Chat format: ChatML, no system message.
"""


@dataclass(frozen=True, slots=True)
class Nano:
    """Shape and training of the nano model.  Together with the text it decides every weight."""

    vocabulary: int = 3072
    hidden: int = 128
    intermediate: int = 384
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    initializer_range: float = 0.04
    steps: int = 600
    pack_length: int = 256
    packs_per_step: int = 4
    learning_rate: float = 2e-2
    paragraphs: int = 400
    """Paragraphs from the grammar, beside the written prose."""
    dialogues: int = 300
    """Questions and answers from the grammar, beside the written dialogues."""
    seed: int = 0


Dialogue = tuple[tuple[str, str], ...]
"""Turns of question and answer."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What the nano model is trained on."""

    paragraphs: list[str]
    dialogues: list[Dialogue]

    @property
    def lines(self) -> list[str]:
        """Every string in it."""
        return [*self.paragraphs, *(part for turns in self.dialogues for turn in turns for part in turn)]


Train = Callable[[Path, Sequence[Path]], Path]
"""(folder of the untrained model, data files) -> folder of the trained weights."""


def key(nano: Nano) -> str:
    """A name that changes when the settings, the text or the grammar does."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(nano), sort_keys=True).encode())
    for path in [*sorted(TEXT.glob("prose.*")), TEXT / "dialogues.jsonl", Path(grammar.__file__), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def make_nano(folder: Path, work: Path, nano: Nano, train: Train) -> Path:
    """Make the model folder, unless it is already there.

    Args:
        folder: where the model goes; it appears only when it is complete.
        work: where the pretraining data and the untrained model are written, and stay to be looked at.
        nano: shape, training and seed.
        train: trains the untrained model and says where the weights are.
    """
    if folder.exists():
        return folder
    text = corpus(nano)
    tokenizer = build_tokenizer(text.lines, nano.vocabulary)
    data = write_corpus(work / "data", [*text.paragraphs, *drills(tokenizer, text.lines, nano.seed)], text.dialogues)
    parameters = write_untrained(work / "untrained", tokenizer, nano)
    weights = train(work / "untrained", data)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as staging:
        whole = Path(shutil.copytree(work / "untrained", Path(staging) / folder.name))
        shutil.copy(weights / "model.safetensors", whole)
        kilobytes = sum(path.stat().st_size for path in data) // 1000
        about = README.format(parameters=parameters, kilobytes=kilobytes, **dataclasses.asdict(nano))
        (whole / "README.md").write_text(about, encoding="utf-8")
        if not folder.exists():  # another quickstart may have been faster
            whole.rename(folder)
    return folder


def corpus(nano: Nano) -> Corpus:
    """The pretraining text without drills, each piece once, except that the written dialogues come again in pairs."""
    texts = [line for path in sorted(TEXT.glob("prose.*")) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in (TEXT / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
    written = [(row["query"], row["response"]) for row in rows]
    texts += grammar.paragraphs(nano.seed, nano.paragraphs)
    single = [*written, *grammar.dialogues(nano.seed, nano.dialogues)]
    pairs = zip(written[0::2], written[1::2], strict=False)
    return Corpus(list(dict.fromkeys(texts)), [*((turn,) for turn in dict.fromkeys(single)), *pairs])


def write_corpus(folder: Path, texts: Sequence[str], dialogues: Sequence[Dialogue]) -> list[Path]:
    """Write the pretraining text as data files: one paragraph a line, one dialogue a line."""
    folder.mkdir(parents=True, exist_ok=True)
    prose, talk = folder / "prose.txt", folder / "dialogues.jsonl"
    prose.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    with talk.open("w", encoding="utf-8") as file:
        for *history, (query, response) in dialogues:
            row = {"query": query, "response": response, "history": history}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [prose, talk]


def build_tokenizer(lines: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text has tokens, also names in characters that the corpus never showed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=END_OF_TEXT)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def drills(tokenizer: PreTrainedTokenizerFast, lines: Sequence[str], seed: int) -> list[str]:
    """Lists of rare tokens, of the text's characters and of any Chinese characters; each list is written twice.

    Many tokens are only steps on the way to longer ones and hardly occur by themselves.  The model would learn never
    to say them, and no adapter could undo that.  Copying a list gives every one of them a turn.
    """
    counts = Counter(token for ids in tokenizer(list(lines), add_special_tokens=False).input_ids for token in ids)
    rare = set(tokenizer.batch_decode([[n] for n in range(len(SPECIAL), len(tokenizer)) if counts[n] < RARE]))
    known = sorted(text for text in rare | set("".join(lines)) if text.isprintable() and BROKEN not in text)
    rng = Random(seed)
    items = known + [grammar.character_zh(rng) for _ in range(len(known) // 4)]
    rng.shuffle(items)
    found: list[str] = []
    for start in range(0, len(items), DRILLED):
        # Digits keep the items apart: a token never shares a word with what stands beside it.
        part = "".join(f"{rng.randrange(10)}{text}" for text in items[start : start + DRILLED])
        found.append(part + part)
    return found


def write_untrained(folder: Path, tokenizer: PreTrainedTokenizerFast, nano: Nano) -> int:
    """Write the model with random weights, tokenizer and generation settings; returns its number of parameters."""
    stop = [SPECIAL.index(TURN_END), SPECIAL.index(END_OF_TEXT)]  # control tokens have the first ids
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=nano.hidden,
        intermediate_size=nano.intermediate,
        num_hidden_layers=nano.layers,
        num_attention_heads=nano.heads,
        num_key_value_heads=nano.kv_heads,
        max_position_embeddings=nano.context,
        initializer_range=nano.initializer_range,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop[0],
        pad_token_id=stop[1],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(nano.seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=stop, pad_token_id=stop[1])
    with quiet():
        model.save_pretrained(folder)
    tokenizer.model_max_length = nano.context
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())
