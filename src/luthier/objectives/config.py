"""Settings of what is learned."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.base.config import Config, Named
from luthier.data.config import Overlong, Sets


class Pretrain(Config):
    """Every token is trained; chats are rendered and trained whole."""

    type: Literal["pretrain"] = "pretrain"


class Sft(Config):
    """The assistant's tokens are trained, unless the data says otherwise."""

    type: Literal["sft"] = "sft"
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Turns that are trained: every assistant turn, the last one, or all turns."""


class SeqCls(Config):
    """Each text, or pair of texts, is given a class, several classes, or a number."""

    type: Literal["seq_cls"] = "seq_cls"
    labels: tuple[str, ...] = ()
    """Names of the classes, in order. Unset: the model's own if they fit, else those found in the data."""
    num_labels: int | None = Field(default=None, ge=1)
    """How many labels there are, for data that does not show them all; 1 with numbers to predict."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """One class, several, or a number. Unset: what the labels look like."""
    class_weights: tuple[str, ...] = ()
    """Weight of each class in the loss, in order or as name=number; or 'balanced': rare classes count more."""
    focal_gamma: float = Field(default=0.0, ge=0.0)
    """Focal loss (Lin et al. 2017): what is already right counts less, the more the higher this is."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread over all classes."""
    threshold: float = Field(default=0.5, gt=0.0, lt=1.0)
    """With several classes: probability from which on a class is predicted."""


class TokenCls(Config):
    """Each word is given a tag: named entities in any scheme, parts of speech."""

    type: Literal["token_cls"] = "token_cls"
    labels: tuple[str, ...] = ()
    """Names of the tags, in order; numbers in the data count through them, from 0 on. Unset: the model's own where the
    data has these, else those found in the data."""
    class_weights: tuple[str, ...] = ()
    """Weight of each tag in the loss, in order or as name=number; or 'balanced': rare tags count more."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each target that is spread over all tags."""


class Mlm(Config):
    """Some words of each text are hidden, and predicted from both sides (BERT)."""

    type: Literal["mlm"] = "mlm"
    probability: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the words that are hidden, drawn anew in each epoch."""
    masked: float = Field(default=0.8, ge=0.0, le=1.0)
    """Share of the hidden tokens that become the mask."""
    random: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of the hidden tokens that become any token; what is left of both shares stays as it is."""
    whole_words: bool = True
    """Hide words with all of their tokens, Chinese words too; otherwise each token for itself."""

    @model_validator(mode="after")
    def _shares_fit(self) -> Mlm:
        if self.masked + self.random > 1:
            raise ValueError("masked and random are shares of the same tokens: together they are at most 1")
        return self


class SpanCorruption(Config):
    """Spans of each text are hidden behind sentinels, and written by the decoder (T5)."""

    type: Literal["span_corruption"] = "span_corruption"
    density: float = Field(default=0.15, gt=0.0, lt=1.0)
    """Share of the tokens that are hidden, drawn anew in each epoch."""
    mean_span: float = Field(default=3.0, ge=1.0)
    """Mean length of a hidden span, in tokens."""


class Seq2Seq(Config):
    """An encoder reads what was asked, a decoder writes the answer (T5, BART, mT5)."""

    type: Literal["seq2seq"] = "seq2seq"
    prefix: str = ""
    """Text in front of every source, as T5's 'summarize: '."""
    max_target_length: int = Field(default=256, ge=2)
    """Longest answer in tokens."""
    generate: bool = True
    """Write answers to the validation rows whenever they are judged, and score them."""
    max_new_tokens: int = Field(default=128, ge=1)
    """Tokens of a written answer."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search; 1 takes the likeliest token each time."""


class Embed(Config):
    """Texts become vectors that lie near each other when they mean the same."""

    type: Literal["embedding"] = "embedding"
    loss: Literal["infonce", "cosine", "cosent"] | None = None
    """infonce: find the text that belongs to a query among all of the step; cosine: hit the score; cosent: order pairs
    as their scores do. Unset: cosent where pairs have scores, else infonce."""
    temperature: float = Field(default=0.05, gt=0.0)
    """Cosines are divided by it in infonce and cosent."""
    in_batch: bool = True
    """infonce: compare each query with the texts of all other queries of the step too."""
    mask_duplicates: bool = True
    """infonce: a text that is also this query's answer is not held against it."""
    negatives: int | None = Field(default=None, ge=0)
    """infonce: hard negatives of each query in a step, drawn anew each time. Unset: all of a row's."""
    matryoshka: tuple[int, ...] = ()
    """Widths that vectors may be cut to; the loss is taken at each of them."""
    matryoshka_weights: tuple[float, ...] = ()
    """Weight of each width. Unset: 1 each."""
    pooling: Literal["mean", "cls", "last"] | None = None
    """What of a text's hidden states is its vector. Unset: as the model's files say, or mean for
    encoders and last for others."""
    query_prompt: str = ""
    """Text in front of every query."""
    text_prompt: str = ""
    """Text in front of everything else."""

    @model_validator(mode="after")
    def _widths_have_weights(self) -> Embed:
        if any(width < 1 for width in self.matryoshka) or any(weight <= 0 for weight in self.matryoshka_weights):
            raise ValueError("matryoshka's widths are whole numbers from 1 on, and their weights more than 0")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
            raise ValueError("matryoshka_weights needs one weight for each of matryoshka's widths")
        return self


class Rerank(Config):
    """Texts are scored by how well they answer a query, each read together with it (cross-encoder)."""

    type: Literal["reranker"] = "reranker"
    loss: Literal["pointwise", "listwise"] = "pointwise"
    """pointwise: each text is right or wrong (binary cross-entropy); listwise: the right one of each row's texts."""
    negatives: int | None = Field(default=None, ge=1)
    """Wrong texts of each query in a step, drawn anew each time. Unset: all of a row's."""


class GenerativeRerank(Config):
    """A language model says yes or no to whether a text answers a query; the score is how much likelier yes is."""

    type: Literal["generative_reranker"] = "generative_reranker"
    loss: Literal["pointwise", "listwise"] = "pointwise"
    """pointwise: each text is right or wrong; listwise: the right one of each row's texts."""
    negatives: int | None = Field(default=None, ge=1)
    """Wrong texts of each query in a step, drawn anew each time. Unset: all of a row's."""
    instruction: str = "Given a web search query, retrieve relevant passages that answer the query"
    """What the model is told to judge."""
    positive_token: str = "yes"
    """The word for a text that answers; one token."""
    negative_token: str = "no"
    """The word for one that does not; one token."""

    @model_validator(mode="after")
    def _words_differ(self) -> GenerativeRerank:
        if self.positive_token == self.negative_token:
            raise ValueError("positive_token and negative_token are the same word")
        return self


class Distill(Config):
    """A student learns the whole distribution that a larger teacher gives each token."""

    type: Literal["distill"] = "distill"
    teacher: str = ""
    """Model folder or hub id of the teacher; it must share the student's tokenizer."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Turns that are learned: every assistant turn, the last one, or all turns; of plain texts everything."""
    divergence: Literal["forward", "reverse", "jsd"] = "forward"
    """forward: KL(teacher | student); reverse: KL(student | teacher); jsd: between both, by beta."""
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)
    """jsd: 0 is forward, 1 is reverse."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Logits of both are divided by it."""
    hard_share: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the usual loss on the data's own tokens; the rest is the divergence."""
    top_k: int | None = Field(default=None, ge=1)
    """Run the teacher once, before training, and keep its so many likeliest tokens. Unset: run it in every step."""
    store: Named | None = None
    """Folder for what is kept of the teacher; it is used again by later runs. Unset: in the cache."""

    @model_validator(mode="after")
    def _store_keeps_something(self) -> Distill:
        if self.store is not None and self.top_k is None:
            raise ValueError("store is for what top_k keeps of the teacher; give top_k, or leave store out")
        return self

    @model_validator(mode="after")
    def _beta_means_something(self) -> Distill:
        if self.beta != Distill.model_fields["beta"].default and self.divergence != "jsd":
            raise ValueError(f"beta is for jsd, and the divergence is {self.divergence}; leave one of them out")
        return self


class Retain(Config):
    """Against forgetting: hold on to what the model could do before."""

    general: tuple[Named, ...] = ()
    """Data sets that stand for what must not be forgotten: judged before and after training, and weighed by ewc."""
    l2sp: float = Field(default=0.0, ge=0)
    """Weight of the squared distance of the moving weights from where they started (L2-SP)."""
    ewc: float = Field(default=0.0, ge=0)
    """The same with each number weighed by how much it matters on the general sets (EWC). With 1 it is about how much
    the loss there would rise."""
    ewc_samples: int = Field(default=256, ge=1)
    """Samples of the general sets that tell what matters."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the divergence from the predictions that the model began with, at the tokens that are trained."""
    lwf: float = Field(default=0.0, ge=0)
    """Weight of the distillation from the model as it began, at every token (Learning without Forgetting)."""
    lwf_temperature: float = Field(default=2.0, gt=0)
    """Temperature of that distillation."""

    @property
    def on(self) -> bool:
        """Whether anything is added to the loss."""
        return bool(self.l2sp or self.ewc or self.kl or self.lwf)

    @model_validator(mode="after")
    def _ewc_has_data(self) -> Retain:
        if self.ewc and not self.general:
            raise ValueError("ewc needs to know what must not be forgotten; name it with --general_dataset")
        return self


_One = Pretrain | Sft | SeqCls | TokenCls | Mlm | SpanCorruption | Seq2Seq | Embed | Rerank | GenerativeRerank | Distill
One = Annotated[_One, Field(discriminator="type")]
"""What is learned by one task."""


def overlong(config: Objective) -> Overlong:
    """What happens to rows that are too long, where nobody said."""
    return "split" if isinstance(config, Pretrain | Mlm | SpanCorruption) else "truncate"


class OneTask(Config):
    """One of several tasks: what is learned, from what, and how much it counts."""

    objective: One | None = None
    """What is learned. Unset: what the first rows are evidently for."""
    datasets: Sets
    """Its training sets."""
    validation: Sets = ()
    """Its validation sets. Unset: the share of its rows that data.split_ratio says."""
    weight: float = Field(default=1.0, gt=0)
    """What its loss counts beside the others'."""
    ratio: float | None = Field(default=None, gt=0)
    """Its share of each step's samples, relative to the other tasks'. Unset: by the number of its samples."""

    @model_validator(mode="after")
    def _has_data(self) -> OneTask:
        if not self.datasets:
            raise ValueError("a task needs at least one training set")
        return self


class Multi(Config):
    """Several tasks are learned at once by one backbone with a head for each."""

    type: Literal["multi"] = "multi"
    tasks: dict[str, OneTask] = {}
    """The tasks by name, each with its objective, datasets, validation, weight and ratio."""

    @model_validator(mode="after")
    def _tasks_are_several(self) -> Multi:
        if len(self.tasks) < 2:
            raise ValueError("several tasks are learned at once; name at least two in objective.tasks")
        wrong = [name for name in self.tasks if not re.fullmatch(r"[A-Za-z0-9_-]+", name)]
        if wrong:
            raise ValueError(f"a task's name is made of letters, digits, _ and -; {wrong[0]!r} is not")
        some = [task.ratio is not None for task in self.tasks.values()]
        if any(some) and not all(some):
            raise ValueError("give a ratio to every task, or to none")
        return self


Objective = Annotated[_One | Multi, Field(discriminator="type")]
