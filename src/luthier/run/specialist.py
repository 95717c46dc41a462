"""Opening models that were trained for something else than to talk: classes, tags, vectors, scores of pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.data.batch import Batch, Group, whole
from luthier.data.config import DataConfig
from luthier.data.plain import Plain
from luthier.evaluate.specialist import Skill, Specialist
from luthier.generate.embed import embed
from luthier.generate.passes import AT_ONCE, each, rows
from luthier.model import methods
from luthier.model.folder import model_folder, read_json
from luthier.model.heads import Head, Kind, Pooling, learned_head
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.vectors import pooling_of
from luthier.objectives.config import Embed, GenerativeRerank, Mlm, Rerank, SeqCls
from luthier.objectives.embedding import POOLINGS
from luthier.objectives.reranking import Judge, reranking, yes_or_no
from luthier.objectives.setting import Setting
from luthier.run.predict import open_predictor, predict_records, problem_of
from luthier.run.result import Usable
from luthier.run.targets import open_writer

KINDS: dict[str, Kind] = {"mlm": "masked", "seq2seq": "seq2seq", "span_corruption": "seq2seq", "embedding": "none"}
"""The heads of objectives that neither classify nor write one token after the other."""
_SENTENCES = "config_sentence_transformers.json"


def skill_of(usable: Usable) -> Skill:
    """What a model can do: what its run was for, or else what its files say.  No weights are read.

    Raises:
        ModelError: a file cannot be read.
    """
    return replace(_skill(usable), columns=usable.columns)


def _skill(usable: Usable) -> Skill:
    objective = usable.trained.objective if usable.trained else None
    if isinstance(objective, Rerank | GenerativeRerank):
        return Skill("pairs")
    if isinstance(objective, Embed | Mlm):
        return Skill("vectors")
    head = learned_head(usable.model)
    if head is not None and head.kind == "token":
        return Skill("tags", head.labels)
    if head is not None:
        # One score without a name is what cross-encoders have; our own regression calls it a value.
        if head.labels == ("LABEL_0",) and not isinstance(objective, SeqCls):
            return Skill("pairs")
        return Skill("classes", head.labels, problem_of(head))
    folder = model_folder(usable.model)
    file = folder / "config.json"
    settings = read_json(file) if file.exists() else {}
    names: list[str] = settings.get("architectures") or []
    if settings.get("is_encoder_decoder"):
        return Skill("targets")
    bare = any(name.endswith(("Model", "ForMaskedLM")) and not name.endswith("LMHeadModel") for name in names)
    return Skill("vectors") if bare or any(folder.glob("*_Pooling/config.json")) else Skill()


def open_specialist(usable: Usable, device: torch.device, name: str, at_once: int = AT_ONCE) -> Specialist:
    """Load a model with a skill other than language.

    Args:
        at_once: tokens that are run together.

    Raises:
        ConfigError, ModelError: it cannot be loaded.
    """
    skill = skill_of(usable)
    if skill.kind in ("classes", "tags"):
        predictor = open_predictor(usable, device)
        return Specialist(name, skill, predict=lambda records: predict_records(records, predictor, at_once))
    if skill.kind == "targets":
        return Specialist(name, skill, targets=open_writer(usable, device, None).write)
    if skill.kind == "vectors":
        return Specialist(name, skill, embeddings=partial(open_embedder(usable, device).embed, at_once=at_once))
    if skill.kind == "pairs":
        return Specialist(name, skill, pair_scores=partial(open_ranker(usable, device).scores, at_once=at_once))
    raise ConfigError("this model talks", where=name)


@dataclass(frozen=True)
class Embedder:
    """A model that makes vectors of texts as it was trained to."""

    model: Model
    plain: Plain
    pooling: Pooling
    query_prompt: str
    text_prompt: str

    def embed(self, texts: Sequence[str], *, queries: bool = False, at_once: int = AT_ONCE) -> NDArray[np.float32]:
        """float32 [texts, D], of length 1; with the text that training put in front of queries, or of other texts."""
        front = self.query_prompt if queries else self.text_prompt
        return self.plainly([front + text for text in texts], at_once)

    def plainly(self, texts: Sequence[str], at_once: int = AT_ONCE) -> NDArray[np.float32]:
        """The same with nothing in front."""
        return embed(self.model, [self.ids(text) for text in texts], self.pooling, at_once)

    def ids(self, text: str) -> Sequence[int]:
        """The tokens of a text, control tokens of the model around them."""
        ids: list[int] = self.plain.words(text).ids.tolist()
        return ids or [int(str(self.plain.tokenizer.eos_token_id))]


@dataclass(frozen=True)
class Ranker:
    """A model that says how well a text answers a query."""

    model: Model
    judge: Judge

    def scores(self, pairs: Sequence[tuple[str, str]], at_once: int = AT_ONCE) -> NDArray[np.float64]:
        """The logit of each query and text.  float64 [pairs]"""

        def run(batch: Batch) -> Iterator[Tensor]:
            return rows(self.judge.scores(self.model, batch))

        return np.array([float(score) for score in each(self.model, self.groups(pairs), run, at_once)], np.float64)

    def groups(self, pairs: Sequence[tuple[str, str]]) -> list[Group]:
        """Each query and text as the sequence that is read."""
        asked = (self.judge.words(query, text) for query, text in pairs)
        return [Group((whole(words.ids, (0.0,), 1.0, words.segments),), words.cut) for words in asked]


def open_embedder(usable: Usable, device: torch.device) -> Embedder:
    """Open a model that makes vectors.  Raises ModelError."""
    tokenizer = load_tokenizer(usable.tokenizer)
    model = _open(usable, device, Head("none"))
    folder = own_folder(usable)
    trained = usable.trained.objective if usable.trained else None
    file = folder / _SENTENCES
    named = (read_json(file) if file.exists() else {}).get("prompts") or {}
    pooling: Pooling | None = None
    query, text = str(named.get("query") or ""), str(named.get("document") or named.get("passage") or "")
    if isinstance(trained, Embed):
        query, text = trained.query_prompt, trained.text_prompt
        pooling = POOLINGS[trained.pooling] if trained.pooling else None
    pooling = pooling or pooling_of(folder) or pooling_of(model_folder(usable.model)) or _usual(usable)
    return Embedder(model, Plain(tokenizer, _longest(usable, model, folder), "truncate"), pooling, query, text)


def open_ranker(usable: Usable, device: torch.device) -> Ranker:
    """Open a model that scores texts for queries.  Raises ModelError."""
    trained = usable.trained.objective if usable.trained else None
    head = Head("causal") if isinstance(trained, GenerativeRerank) else learned_head(usable.model)
    assert head is not None, "only models that score pairs are opened"
    model = _open(usable, device, head)
    data = (usable.trained.data if usable.trained else DataConfig()).model_copy(update={"overlong": "truncate"})
    longest = _longest(usable, model, own_folder(usable))
    setting = Setting(load_tokenizer(usable.tokenizer), usable.model, data, longest)
    if isinstance(trained, GenerativeRerank):
        return Ranker(model, yes_or_no(trained, setting).judge)
    return Ranker(model, reranking(Rerank(), setting).judge)


def _open(usable: Usable, device: torch.device, head: Head) -> Model:
    tokenizer = load_tokenizer(usable.tokenizer)
    model = load_model(usable.model, device, tokenizer=tokenizer, trained=False, head=head)
    methods.attach(model, usable.model.adapters)
    model.eval_mode()
    return model


def own_folder(usable: Usable) -> Path:
    """The folder of the artefact: the last adapter's, or the model's."""
    adapters = usable.model.adapters
    return Path(adapters[-1]).expanduser() if adapters else model_folder(usable.model)


def _usual(usable: Usable) -> Pooling:
    """The mean for encoders, the last token for what only looks back."""
    names: list[str] = read_json(model_folder(usable.model) / "config.json").get("architectures") or []
    return "last" if any("ForCausalLM" in name for name in names) else "mean"


def _longest(usable: Usable, model: Model, folder: Path) -> int:
    """Tokens of a text: as in training, where that is known."""
    file = folder / "sentence_bert_config.json"
    told = read_json(file).get("max_seq_length") if file.exists() else None
    if usable.trained is not None:
        told = usable.trained.data.max_length
    return min(model.max_length, told) if isinstance(told, int) else model.max_length
