"""Settings of the model room: which model, how it is held, which of its numbers may move."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.base.config import Config, Named
from luthier.model.method import Freeze, Full, Lora, Method

__all__ = ["BITS", "Freeze", "Full", "Lora", "Method", "ModelConfig", "Quant", "Shape", "Vocabulary"]

BITS: dict[str, tuple[int, ...]] = {"bnb": (4, 8), "hqq": (4, 2, 3, 8), "eetq": (8,), "fp8": (8,)}
"""Bits that each library rounds weights to, the usual ones first."""


class Quant(Config):
    """A frozen base in fewer bits: its linear layers are rounded when it is loaded, adapters are trained over it."""

    method: Literal["none", "bnb", "hqq", "eetq", "fp8"] | None = None
    """Library that rounds; fp8 needs none and is the fastest. Unset: bnb when bits are given; for an
    adapter in use, as in its training; else none."""
    bits: int | None = None
    """Bits of a weight: bnb 4 or 8, hqq 2, 3, 4 or 8, eetq and fp8 8. Unset: 4 where there is a choice."""
    format: Literal["nf4", "fp4"] = "nf4"
    """The 16 values of bnb's 4 bits."""
    double_quant: bool = True
    """Round the scales of bnb's 4 bits too."""
    group_size: int = Field(default=64, ge=8, multiple_of=8)
    """Weights that share a scale in hqq."""
    skip: tuple[Named, ...] = ()
    """Layers that are not rounded, by a part of their dotted name; the head never is."""

    @property
    def on(self) -> bool:
        """Whether anything is rounded."""
        return self.method in BITS

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if given.get("method") == "torchao":
            raise ValueError(
                "torchao rounds when a model is written (luthier export --quant_method torchao), and what it has "
                "written is opened without --quant_method; bnb and hqq round when a model is loaded"
            )
        if "bits" in given:
            given.setdefault("method", "bnb")
        if given.get("method") in BITS:
            given.setdefault("bits", BITS[given["method"]][0])
        return given

    @model_validator(mode="after")
    def _possible(self) -> Quant:
        if self.method in BITS and self.bits not in BITS[self.method]:
            known = " or ".join(str(bits) for bits in sorted(BITS[self.method]))
            raise ValueError(f"{self.method} holds weights in {known} bits, not in {self.bits}")
        return self


class Vocabulary(Config):
    """More tokens for the model; each starts as the mean of its old pieces."""

    tokens: tuple[Named, ...] = ()
    """Tokens to add: words, or .txt files with one on each line."""
    special: tuple[Named, ...] = ()
    """Control tokens to add, in the same way."""
    learn: int = Field(default=0, ge=0)
    """Tokens to learn from domain text, by joining the tokenizer's own pieces further (BPE)."""
    text: tuple[Named, ...] = ()
    """Data sets of domain text to learn them from. Unset: the training sets."""

    @property
    def grows(self) -> bool:
        """Whether anything is added."""
        return bool(self.tokens or self.special or self.learn)


class ModelConfig(Config):
    """The base model and its tokenizer."""

    path: str = ""
    """Model folder or hub id; nano is the tiny model that comes with Luthier."""
    revision: Named | None = None
    """Branch, tag or commit on the hub."""
    hub: Literal["hf", "ms"] = "hf"
    """Hub for model ids: Hugging Face or ModelScope."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the frozen weights and of the arithmetic. auto: bfloat16 on a GPU that has it, else float32."""
    attention: Literal["auto", "packed", "sdpa", "eager"] = "auto"
    """Attention kernel. packed: no padding at all; auto: packed where the model allows it."""
    quant: Quant = Quant()
    """A frozen base in fewer bits."""
    vocabulary: Vocabulary = Vocabulary()
    """More tokens."""
    layers: Literal["auto", "plain"] = "auto"
    """Who computes the layers of Llama-shaped models on a GPU. auto: Luthier's own kernels; plain: transformers."""
    adapters: tuple[Named, ...] = ()
    """Earlier adapters, applied in order. Training continues the last one when its method fits."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off: such models are refused."""
    template: Named | None = None
    """Chat template: a Jinja file or a bundled name. Unset: the model's own."""
    template_args: dict[str, Any] = {}
    """Extra variables for the chat template, for example {"enable_thinking": false}."""


class Shape(Config):
    """Kind and size of a new model, in the words of transformers."""

    architecture: Literal["qwen2", "bert", "modernbert", "t5"] = "qwen2"
    """qwen2: a decoder, for pretrain and sft; bert, modernbert: encoders, for --task_type mlm and what builds on it, of
    which modernbert learns faster from nothing; t5: an encoder and a decoder, for --task_type span_corruption and
    seq2seq."""
    vocab_size: int = Field(default=6144, ge=300)
    """Tokens of the vocabulary, control tokens included: 3 and the 256 bytes in qwen2, 5 in bert and modernbert, 103 in
    t5."""
    hidden_size: int = Field(default=256, ge=8)
    """Width of the residual stream."""
    intermediate_size: int = Field(default=736, ge=8)
    """Width inside the feed-forward blocks."""
    num_hidden_layers: int = Field(default=8, ge=1)
    """Layers."""
    num_attention_heads: int = Field(default=4, ge=1)
    """Query heads; hidden_size must be an even multiple of them."""
    num_key_value_heads: int = Field(default=2, ge=1)
    """Key and value heads of qwen2, each shared by a group of query heads."""
    max_position_embeddings: int = Field(default=1024, ge=16)
    """Longest sequence in tokens."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Standard deviation of the random weights."""
    tie_word_embeddings: bool = True
    """One matrix both reads tokens and scores them."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Share of the activations of encoders and t5 that training drops, kept in the model's config. Unset: as these were
    first trained, 0.1 (modernbert: 0); 0 suits text that is seen a few times only, and is faster."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Shape:
        if self.architecture == "qwen2" and self.dropout is not None:
            raise ValueError("qwen2 has no dropout")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError(f"hidden_size must be an even multiple of {self.num_attention_heads} attention heads")
        if self.architecture == "qwen2" and self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        return self
