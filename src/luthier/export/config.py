"""Settings of the export room: what is made of a trained model, and where it goes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from luthier.base.config import Config, Named
from luthier.model.config import ModelConfig

QuantMethod = Literal["bnb", "torchao", "hqq", "gptq", "llmcompressor"]
QUANT_BITS: dict[str, tuple[int, ...]] = {
    "bnb": (4, 8),
    "torchao": (8, 4),
    "hqq": (4, 8, 3, 2),
    "gptq": (4, 8, 3, 2),
    "llmcompressor": (4, 8),
}
"""Bits that each library writes, the usual ones first."""


class ExportConfig(Config):
    """What to make of a model."""

    model: ModelConfig = ModelConfig()
    """The model, or the adapters of a run; base, template and system message then come from the run."""
    merge_lora: bool = False
    """Write one plain model with the adapters inside."""
    quant_method: QuantMethod | None = None
    """Library that rounds the written weights. Unset: bnb when bits are given; else they are not rounded."""
    quant_bits: int | None = None
    """Bits of a written weight: bnb 4 or 8, torchao 8 or 4 (GPU), hqq, gptq 2, 3, 4 or 8, llmcompressor 4 or 8."""
    quant_group: int = Field(default=64, ge=8, multiple_of=8)
    """Weights that share a scale in hqq, gptq, llmcompressor and torchao's 4 bits."""
    to_gguf: bool = False
    """Write a GGUF file, for llama.cpp and what is built on it."""
    gguf_type: Literal["f16", "q8_0"] = "f16"
    """Type of the matrices in the GGUF file."""
    to_ollama: bool = False
    """Write a GGUF file and the Modelfile for `ollama create`."""
    push_to_hub: bool = False
    """Publish the result, or a run as it is. The token comes from $HF_TOKEN or $MODELSCOPE_API_TOKEN."""
    hub_model_id: Named | None = None
    """Name on the hub: owner/name."""
    hub_private: bool = True
    """A model that is new on the hub is seen by its owner only."""
    hub_base: str | None = None
    """Name of the base model on the hub, for the card. Unset: as it was given to the training, if that is one."""
    commit_message: str = "Upload with Luthier"
    """Message of the upload."""
    dataset: tuple[Named, ...] = ()
    """Rows that calibrate rounding and measure what it costs. Unset: those of the run, else a few that come along."""
    rows: int = Field(default=64, ge=1)
    """How many of them."""
    output_dir: Named | None = None
    """Folder for the result. Unset: the run's exports/, or beside the model, named after what was done."""
    device: str = "auto"
    """cpu, cuda, or auto."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if "quant_bits" in given:
            given.setdefault("quant_method", "bnb")
        if given.get("quant_method") in QUANT_BITS:
            given.setdefault("quant_bits", QUANT_BITS[given["quant_method"]][0])
        if given.get("to_ollama"):
            given["to_gguf"] = True
        return given

    @model_validator(mode="after")
    def _possible(self) -> ExportConfig:
        if self.quant_method is not None and self.quant_bits not in QUANT_BITS[self.quant_method]:
            known = " or ".join(str(bits) for bits in sorted(QUANT_BITS[self.quant_method]))
            raise ValueError(f"{self.quant_method} writes weights in {known} bits, not in {self.quant_bits}")
        if self.quant_method is not None and self.to_gguf:
            raise ValueError("a GGUF file has types of its own: use --gguf_type q8_0 without --quant_method")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub needs a name on the hub: --hub_model_id owner/name")
        if not (self.merge_lora or self.quant_method or self.to_gguf or self.push_to_hub):
            raise ValueError(
                "say what to make: --merge_lora true, --quant_method METHOD, --to_gguf, --to_ollama or --push_to_hub"
            )
        return self
