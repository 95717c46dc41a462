"""Make the nano base model: bundled text -> tokenizer -> tiny Qwen2-shaped model -> pretraining -> model folder.

The result is a plain transformers folder.  How the model is trained is handed in, because this room lies below the
one that trains.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from luthier.model.load import quiet
from luthier.model.nano import grammar

TEXT = Path(__file__).parent / "text"
"""The bundled text; see its README."""

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

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
    steps: int = 500
    pack_length: int = 256
    packs_per_step: int = 4
    learning_rate: float = 2e-2
    paragraphs: int = 800
    """Paragraphs from the grammar, beside the written prose."""
    dialogues: int = 600
    """Questions and answers from the grammar, beside the written dialogues."""
    seed: int = 0


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
    texts, talks = corpus(nano)
    data = write_corpus(work / "data", texts, talks)
    tokenizer = build_tokenizer([*texts, *(part for talk in talks for part in talk)], nano.vocabulary)
    parameters = write_untrained(work / "untrained", tokenizer, nano)
    weights = train(work / "untrained", data)

    staging = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(work / "untrained", staging)
    shutil.copy(weights / "model.safetensors", staging)
    kilobytes = sum(path.stat().st_size for path in data) // 1000
    about = README.format(parameters=parameters, kilobytes=kilobytes, **dataclasses.asdict(nano))
    (staging / "README.md").write_text(about, encoding="utf-8")
    staging.rename(folder)
    return folder


def corpus(nano: Nano) -> tuple[list[str], list[tuple[str, str]]]:
    """The pretraining text, each piece once: paragraphs, and pairs of question and answer."""
    texts = [line for path in sorted(TEXT.glob("prose.*")) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [json.loads(line) for line in (TEXT / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
    talks = [(row["query"], row["response"]) for row in rows]
    texts += grammar.paragraphs(nano.seed, nano.paragraphs)
    talks += grammar.dialogues(nano.seed, nano.dialogues)
    return list(dict.fromkeys(texts)), list(dict.fromkeys(talks))


def write_corpus(folder: Path, texts: Sequence[str], talks: Sequence[tuple[str, str]]) -> list[Path]:
    """Write the pretraining text as data files: one paragraph a line, one question and answer a line."""
    folder.mkdir(parents=True, exist_ok=True)
    prose, dialogues = folder / "prose.txt", folder / "dialogues.jsonl"
    prose.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    rows = (json.dumps({"query": query, "response": response}, ensure_ascii=False) for query, response in talks)
    dialogues.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return [prose, dialogues]


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
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=TURN_END, pad_token=END_OF_TEXT)
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def write_untrained(folder: Path, tokenizer: PreTrainedTokenizerFast, nano: Nano) -> int:
    """Write the model with random weights, tokenizer and generation settings; returns its number of parameters."""
    stop = [tokenizer.convert_tokens_to_ids(token) for token in (TURN_END, END_OF_TEXT)]
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
