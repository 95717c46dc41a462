"""Settings of the methods: which numbers may move, and what each way of moving them goes together with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.base.config import Config


@dataclass(frozen=True, slots=True)
class Supports:
    """What a method goes together with; anything else is refused when the settings are resolved."""

    packing: bool = True
    """Sequences laid end to end; without it they are padded."""
    checkpointing: bool = True
    """Activations computed again in the backward pass."""
    merging: bool = False
    """What was learned can become part of the base's own weights."""
    few_bits: bool = False
    """A base whose weights are held in 8 bits or fewer."""
    sharding: bool = False
    """Weights split over processes (FSDP2)."""
    average: bool = True
    """A moving average of what is learned."""
    by_hand: bool = False
    """Layers computed by Luthier's own kernels, where the model allows it."""
    continues: bool = True
    """An earlier adapter can be trained further."""


_WHOLE = Supports(sharding=True, by_hand=True)
_TURNS = Supports(by_hand=True)
_INSIDE = Supports(merging=True, few_bits=True)
_BEFORE = Supports(packing=False, few_bits=True)


class Full(Config):
    """Every weight moves."""

    supports: ClassVar[Supports] = _WHOLE
    rate: ClassVar[float] = 1e-5
    type: Literal["full"] = "full"


class Freeze(Config):
    """Some of the weights move; embeddings and head only when asked for by pattern."""

    supports: ClassVar[Supports] = _WHOLE
    rate: ClassVar[float] = 1e-5
    type: Literal["freeze"] = "freeze"
    first_layers: int = Field(default=0, ge=0)
    """Train this many layers from the bottom."""
    last_layers: int = Field(default=0, ge=0)
    """Train this many layers from the top."""
    ratio: float = Field(default=0.0, ge=0.0, le=1.0)
    """Train this share of the layers, from the top."""
    pattern: str | None = None
    """Train every parameter whose name matches this regular expression."""

    @model_validator(mode="after")
    def _something_moves(self) -> Freeze:
        if not (self.first_layers or self.last_layers or self.ratio or self.pattern):
            raise ValueError("freeze leaves nothing to train; set first_layers, last_layers, ratio or pattern")
        return self


class BitFit(Config):
    """Only biases move (Ben Zaken et al. 2022)."""

    supports: ClassVar[Supports] = _WHOLE
    rate: ClassVar[float] = 1e-3
    type: Literal["bitfit"] = "bitfit"


class Gradual(Config):
    """Layers begin to move one after the other from the top (Howard and Ruder 2018); in the end all weights move."""

    supports: ClassVar[Supports] = _TURNS
    rate: ClassVar[float] = 1e-5
    type: Literal["gradual"] = "gradual"
    layers_at_once: int = Field(default=1, ge=1)
    """Layers that begin to move together."""
    unfreeze_every: int | None = Field(default=None, ge=1)
    """Steps between two beginnings. Unset: evenly over the first half of the run."""


class Lisa(Config):
    """Embedding, head and a few layers drawn at random move; every so many steps others are drawn (Pan et al. 2024).

    A layer at rest has no gradient and no optimizer state, which saves the memory.
    """

    supports: ClassVar[Supports] = _TURNS
    rate: ClassVar[float] = 1e-5
    type: Literal["lisa"] = "lisa"
    active_layers: int = Field(default=2, ge=1)
    """Layers that move at one time."""
    interval: int = Field(default=20, ge=1)
    """Steps until others are drawn."""


class Lora(Config):
    """Low-rank adapters (Hu et al. 2021) in PEFT's format."""

    supports: ClassVar[Supports] = Supports(merging=True, few_bits=True, sharding=True, by_hand=True)
    rate: ClassVar[float] = 1e-4
    type: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that get adapters: all-linear, a list of module names, or a regular expression."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained and saved whole, for example embed_tokens lm_head."""
    vocabulary: Literal["none", "new", "all"] | None = None
    """Rows of embedding and head that move: those of tokens that were added, or all. Unset: new where there are any."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA)."""
    dora: bool = False
    """Decompose weights into magnitude and direction (DoRA)."""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """How adapters start."""
    plus_ratio: float | None = Field(default=None, gt=0)
    """LoRA+: learning rate of B is this many times the one of A."""


class AdaLora(Config):
    """Low-rank adapters that share a budget of ranks by importance (Zhang et al. 2023)."""

    supports: ClassVar[Supports] = Supports(merging=True, average=False, continues=False)
    rate: ClassVar[float] = 1e-3
    type: Literal["adalora"] = "adalora"
    target_rank: int = Field(default=8, ge=1)
    """Average rank at the end."""
    initial_rank: int = Field(default=12, ge=1)
    """Rank of every adapter at the beginning."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the adapter's product is multiplied by alpha / initial rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that get adapters: all-linear, a list of module names, or a regular expression."""
    settle_steps: int | None = Field(default=None, ge=0)
    """Steps before the first rank is taken away. Unset: a tenth of the run."""
    final_steps: int | None = Field(default=None, ge=0)
    """Steps after the last rank has been taken away. Unset: three tenths of the run."""
    allocate_every: int = Field(default=1, ge=1)
    """Steps between two allocations."""
    orthogonal: float = Field(default=0.5, ge=0)
    """Weight of the term that keeps an adapter's directions at right angles."""

    @model_validator(mode="after")
    def _ranks_shrink(self) -> AdaLora:
        if self.target_rank >= self.initial_rank:
            raise ValueError("AdaLoRA takes ranks away: target_rank must be below initial_rank")
        return self


class Vera(Config):
    """Vectors that scale shared, frozen random matrices (Kopiczko et al. 2024)."""

    supports: ClassVar[Supports] = _INSIDE
    rate: ClassVar[float] = 5e-3
    type: Literal["vera"] = "vera"
    rank: int = Field(default=256, ge=1)
    """Rank of the random matrices."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that get vectors: all-linear, a list of module names, or a regular expression."""
    d_initial: float = 0.1
    """Where the vector between the two random matrices starts."""
    projection_seed: int = 0
    """Seed of the random matrices, which are saved with the vectors."""


class Ia3(Config):
    """Vectors that scale keys, values and the inside of the feed-forward blocks (Liu et al. 2022)."""

    supports: ClassVar[Supports] = _INSIDE
    rate: ClassVar[float] = 3e-3
    type: Literal["ia3"] = "ia3"
    target: str | tuple[str, ...] = "auto"
    """Layers whose outputs (of feed-forward ones: inputs) are scaled; auto: what PEFT knows of the architecture."""
    feedforward: tuple[str, ...] | None = None
    """Those of them whose inputs are scaled. Unset: with target auto what PEFT knows, else none."""


class Oft(Config):
    """Orthogonal rotations of each layer's input, in blocks (Qiu et al. 2023)."""

    supports: ClassVar[Supports] = _INSIDE
    rate: ClassVar[float] = 1e-3
    type: Literal["oft"] = "oft"
    block_size: int = Field(default=32, ge=2)
    """Inputs that are rotated together; a divisor of the layers' inputs."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the blocks left unrotated in a step."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that are rotated: all-linear, a list of module names, or a regular expression."""


class Boft(Config):
    """Orthogonal rotations of each layer's output, factorised as a butterfly (Liu et al. 2024)."""

    supports: ClassVar[Supports] = Supports(merging=True)
    rate: ClassVar[float] = 1e-3
    type: Literal["boft"] = "boft"
    block_size: int = Field(default=4, ge=2)
    """Inputs that are rotated together; a divisor of the layers' inputs."""
    factors: int = Field(default=1, ge=1)
    """Butterfly factors; each mixes farther apart. More than 1 needs a CUDA extension that PEFT compiles."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the blocks left unrotated in a step."""
    target: str | tuple[str, ...] = "all-linear"
    """Layers that are rotated: all-linear, a list of module names, or a regular expression."""


class LnTuning(Config):
    """Only the norms move (Zhao et al. 2023)."""

    supports: ClassVar[Supports] = _INSIDE
    rate: ClassVar[float] = 1e-3
    type: Literal["ln_tuning"] = "ln_tuning"
    target: str | tuple[str, ...] = "norms"
    """Norms that move: norms (all of them), a list of module names, or a regular expression."""


class Prompt(Config):
    """Virtual tokens before every sequence whose embeddings move (Lester et al. 2021)."""

    supports: ClassVar[Supports] = _BEFORE
    rate: ClassVar[float] = 1e-2
    type: Literal["prompt"] = "prompt"
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens before every sequence."""
    start: Literal["vocabulary", "random", "text"] = "vocabulary"
    """Where the virtual tokens start: embeddings of tokens drawn from the vocabulary, random numbers, or a text's."""
    text: str | None = None
    """The text whose tokens they start from, repeated or cut to fit."""

    @model_validator(mode="before")
    @classmethod
    def _text_starts(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("text"):
            return {"start": "text", **values}
        return values

    @model_validator(mode="after")
    def _text_when_asked(self) -> Prompt:
        if (self.start == "text") != bool(self.text):
            raise ValueError("start text needs a text (--prompt_tuning_init_text), and a text needs start text")
        return self


class Prefix(Config):
    """Keys and values before every sequence, in every layer (Li and Liang 2021); also known as P-tuning v2."""

    supports: ClassVar[Supports] = Supports(packing=False, checkpointing=False, few_bits=True, average=False)
    rate: ClassVar[float] = 1e-2
    type: Literal["prefix"] = "prefix"
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens before every sequence."""
    projection: bool = False
    """Make keys and values of embeddings by a network of two layers while training; P-tuning v2 does not."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of that network. Unset: the model's."""
    start: Literal["vocabulary", "random"] = "vocabulary"
    """Without projection, where keys and values start: what the model makes of tokens drawn from the vocabulary, or
    random numbers."""


class PTuning(Config):
    """Virtual tokens made by a small network while training (P-tuning v1, Liu et al. 2021)."""

    supports: ClassVar[Supports] = Supports(packing=False, few_bits=True, average=False, continues=False)
    rate: ClassVar[float] = 1e-3
    type: Literal["ptuning"] = "ptuning"
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens before every sequence."""
    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network."""
    hidden_size: int | None = Field(default=None, ge=1)
    """Width of that network. Unset: the model's."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout inside an LSTM."""


Prompting = Prompt | Prefix | PTuning
"""Methods that put something before every sequence."""

Injected = Lora | AdaLora | Vera | Ia3 | Oft | Boft | LnTuning
"""Methods that change what layers compute, through PEFT."""

Adapting = Injected | Prompting
"""Methods that leave the base as it is and are saved in PEFT's format."""

WholeWeights = Full | Freeze | BitFit | Gradual | Lisa
"""Methods that move the model's own weights."""

Method = Annotated[WholeWeights | Injected | Prompting, Field(discriminator="type")]


def virtual_tokens(method: WholeWeights | Injected | Prompting) -> int:
    """Places of the model's context that a method takes before every sequence."""
    return method.virtual_tokens if isinstance(method, Prompting) else 0
