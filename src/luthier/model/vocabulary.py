"""More tokens for a model: a new base folder whose tokenizer has them and whose rows for them start in the middle of
their old pieces.

The folder is one that plain transformers opens, tied heads and all; whatever is trained over it needs no more than it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.base.errors import ConfigError, ModelError
from luthier.model.config import ModelConfig, Vocabulary
from luthier.model.folder import check_weights, model_folder
from luthier.model.load import load_tokenizer, quiet
from luthier.model.merges import Merge, Pieces, count_words, learn_merges, old_pieces

FILE = "new_tokens.json"
"""Beside the weights: which tokens are new, and what was asked for."""


@dataclass(frozen=True, slots=True)
class Grown:
    """What became of a vocabulary."""

    folder: Path
    tokens: dict[str, int]
    """The new tokens and their ids."""
    texts: tuple[str, ...]
    """What they stand for, without those that are parts of characters."""
    learned: int = 0
    """How many of them were learned from text."""


def asked(settings: Vocabulary, base: str) -> str:
    """A short hash of what is asked for, over files' contents."""
    words = [*_listed(settings.tokens), "", *_listed(settings.special), "", str(settings.learn), *settings.text, base]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=6).hexdigest()


def new_ids(folder: Path) -> list[int]:
    """The ids of tokens that were added to the model in a folder."""
    file = folder / FILE
    return sorted(json.loads(file.read_text(encoding="utf-8"))["tokens"].values()) if file.exists() else []


def grow(config: ModelConfig, settings: Vocabulary, folder: Path, texts: Callable[[], Iterable[str]]) -> Grown:
    """Write the model of `config` with more tokens to `folder`.

    Args:
        texts: domain text to learn tokens from.

    Raises:
        ConfigError: no token is new, or tokens cannot be learned for this kind of tokenizer.
        ModelError: the model cannot be read.
    """
    source = model_folder(config)
    check_weights(source)
    old = load_tokenizer(config)
    folder.mkdir(parents=True, exist_ok=True)
    old.save_pretrained(folder)
    first = max(old.get_vocab().values()) + 1
    pieces: dict[int, Pieces] = {}
    merges: list[Merge] = []
    if settings.learn:
        merges = _learned(old, texts(), settings.learn, first)
        _write_merges(folder, old, merges)
        pieces |= old_pieces(merges, first)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for words, special in ((_listed(settings.tokens), False), (_listed(settings.special), True)):
        tokenizer.add_tokens([AddedToken(word, special=special, normalized=False) for word in words], special)
        for word in words:
            token = int(tokenizer.convert_tokens_to_ids(word))
            if token >= first:
                pieces[token] = tuple(old.encode(word, add_special_tokens=False))
    if not pieces:
        raise ConfigError("the tokenizer knows all these tokens already", where="model.vocabulary")
    tokenizer.chat_template = old.chat_template
    tokenizer.save_pretrained(folder)
    _check(folder, old, pieces)
    _write_weights(source, folder, max(tokenizer.get_vocab().values()) + 1, pieces)
    names: Any = tokenizer.convert_ids_to_tokens(sorted(pieces))
    tokens = dict(zip(names, sorted(pieces), strict=True))
    told = {"tokens": tokens, "asked": asked(settings, config.path)}
    (folder / FILE).write_text(json.dumps(told, ensure_ascii=False, indent=1), encoding="utf-8")
    shown = [str(tokenizer.decode([token])) for token in sorted(pieces)]
    return Grown(folder, tokens, tuple(text for text in shown if "\ufffd" not in text), len(merges))


def _listed(named: Sequence[str]) -> list[str]:
    """Tokens as given, and those of files, one on each line."""
    found: list[str] = []
    for name in named:
        file = Path(name).expanduser()
        if name.endswith(".txt"):
            if not file.is_file():
                raise ConfigError("no such file of tokens", where=name, code="no_file")
            found += [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


def _learned(old: PreTrainedTokenizerFast, texts: Iterable[str], count: int, first: int) -> list[Merge]:
    state = json.loads(old.backend_tokenizer.to_str())["model"]
    if state["type"] != "BPE" or state.get("continuing_subword_prefix") or state.get("end_of_word_suffix"):
        raise ConfigError(
            f"tokens can be learned for BPE tokenizers only, this is {state['type']}",
            where="model.vocabulary.learn",
            fix="List the tokens in a file instead: --add_tokens words.txt",
        )
    names = {token: name for name, token in old.get_vocab().items()}
    merges = learn_merges(count_words(texts, old), names, count, first)
    if not any(merge.into >= first for merge in merges):
        raise ConfigError(
            "the text has no word of several tokens that stands there twice",
            where="model.vocabulary.text",
            fix="Give more text",
        )
    return merges


def _write_merges(folder: Path, old: PreTrainedTokenizerFast, merges: Sequence[Merge]) -> None:
    """Put the merges into tokenizer.json.  Control tokens get their ids written down too, which otherwise count on
    from the size of the vocabulary."""
    file = folder / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    vocabulary, known = state["model"]["vocab"], state["model"]["merges"]
    for added in state["added_tokens"]:
        vocabulary.setdefault(added["content"], added["id"])
    names = {token: name for name, token in old.get_vocab().items()}
    as_text = bool(known) and isinstance(known[0], str)
    for merge in merges:
        pair = names[merge.left], names[merge.right]
        names[merge.into] = "".join(pair)
        vocabulary[names[merge.into]] = merge.into
        known.append(" ".join(pair) if as_text else list(pair))
    file.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
    for stale in ("vocab.json", "merges.txt"):
        (folder / stale).unlink(missing_ok=True)


def _check(folder: Path, old: PreTrainedTokenizerFast, pieces: dict[int, Pieces]) -> None:
    """The tokenizer as it will be opened has the old tokens under their ids, and the new ones above them."""
    again: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder)
    now = again.get_vocab()
    moved = [name for name, token in old.get_vocab().items() if now.get(name) != token]
    if moved or set(now.values()) - set(old.get_vocab().values()) != set(pieces):
        raise ModelError(
            f"the tokenizer does not take these tokens as they are ({len(moved)} old ones would move)",
            where=str(folder),
            fix="List tokens in a file, or use another tokenizer",
        )


@torch.no_grad()
def _write_weights(source: Path, folder: Path, size: int, pieces: dict[int, Pieces]) -> None:
    with quiet():
        network: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True)
        rows = network.get_input_embeddings().weight.shape[0]
        if size > rows:
            network.resize_token_embeddings(size, mean_resizing=False)
        embedding, head = network.get_input_embeddings().weight, network.get_output_embeddings()
        matrices = [embedding] if head.weight is embedding else [embedding, head.weight]
        for matrix in matrices:
            for token, parts in pieces.items():
                matrix[token] = matrix[list(parts)].float().mean(0).to(matrix.dtype)
        network.save_pretrained(folder)
