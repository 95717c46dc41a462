"""What stands on a backbone: vocabulary scores, classes of sequences or of tokens, or nothing.

A head of transformers is never written again here.  Its own forward pass runs, with the hidden states that we have
computed put into its hands in place of the backbone's: `through`.  So every architecture's pooler, norm, projection and
scale is what it is elsewhere, and what is saved predicts the same.

Legend: T packed tokens, S sequences, L tokens of the longest sequence, R rows, C classes, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    BaseModelOutputWithPoolingAndCrossAttentions,
    Seq2SeqModelOutput,
)
from transformers.models.auto import modeling_auto as auto

from luthier.model.config import ModelConfig
from luthier.model.folder import model_folder, read_json

Kind = Literal["causal", "sequence", "token", "masked", "seq2seq", "none"]


@dataclass(frozen=True, slots=True)
class Head:
    """What a task asks of a model.

    kind: causal and masked score the vocabulary, seq2seq does behind an encoder and a decoder, sequence and token give
    one score for each label, none gives hidden states.
    """

    kind: Kind = "causal"
    labels: tuple[str, ...] = ()
    """Names of the scores, in order; empty leaves them as the model's config has them."""
    problem: Literal["single_label_classification", "multi_label_classification", "regression"] | None = None
    """What transformers is to take the labels for."""

    @property
    def is_new(self) -> bool:
        """Whether a model may come without it: it is then drawn at random, and learned."""
        return self.kind in ("sequence", "token")


CAUSAL = Head()
LABELS = "labels.json"
ENDINGS: dict[Kind, str] = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}
"""How architectures that classify are called."""

# The mappings' own types list every architecture.
_WRITTEN_FOR: dict[Kind, Any] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "masked": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "none": auto.MODEL_MAPPING_NAMES,
}
CLASSES: dict[Kind, str] = {
    "causal": "AutoModelForCausalLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "none": "AutoModel",
}
"""The class of transformers that loads each kind."""


def written_for(kind: Kind) -> Mapping[str, str]:
    """The architectures that a kind of head exists for: class names by model type."""
    return _WRITTEN_FOR[kind]


WORDS: dict[Kind, str] = {
    "causal": "a causal language model",
    "sequence": "a model that classifies texts",
    "token": "a model that classifies tokens",
    "masked": "a masked language model",
    "seq2seq": "a model of an encoder and a decoder",
    "none": "a model that gives hidden states",
}

PEFT_TASKS: dict[Kind, str | None] = {
    "causal": "CAUSAL_LM",
    "sequence": "SEQ_CLS",
    "token": "TOKEN_CLS",
    "masked": None,
    "seq2seq": "SEQ_2_SEQ_LM",
    "none": "FEATURE_EXTRACTION",
}


def made_for(settings: Mapping[str, Any]) -> Kind | None:
    """What a model is before it is trained for a task, by its config.json: an encoder that fills gaps (masked), an
    encoder with a decoder (seq2seq), or a language model (causal).  None where the file does not say."""
    named = " ".join(settings.get("architectures") or ())
    if settings.get("is_encoder_decoder"):
        return "seq2seq"
    if "CausalLM" in named or "LMHeadModel" in named or settings.get("is_decoder"):
        return "causal"
    kind = settings.get("model_type")
    if kind in written_for("masked"):
        return "masked"
    return "causal" if kind in written_for("causal") else None


def loader(head: Head) -> Callable[..., Any]:
    """What reads a model with this head from its folder."""
    return getattr(transformers, CLASSES[head.kind]).from_pretrained


def configure(settings: PreTrainedConfig, head: Head, pad: int | None) -> None:
    """Write labels into a model's config, for whoever opens it later.

    pad: the tokenizer's token for padding, which transformers wants to know where it classifies batches.
    """
    if head.labels:
        settings.id2label = dict(enumerate(head.labels))
        settings.label2id = {label: number for number, label in enumerate(head.labels)}
    if head.kind == "sequence":
        settings.problem_type = head.problem
        text = settings.get_text_config()
        if getattr(text, "pad_token_id", None) is None:
            text.pad_token_id = pad


def own_labels(config: ModelConfig) -> tuple[str, ...]:
    """The classes that a model's files name, in order; none where it has only transformers' placeholders."""
    labels = _named(read_json(model_folder(config) / "config.json"))
    for adapter in config.adapters:
        file = Path(adapter).expanduser() / LABELS
        labels = _named(read_json(file)) if file.exists() else labels
    return () if all(label.startswith("LABEL_") for label in labels) else labels


def _named(settings: Mapping[str, Any]) -> tuple[str, ...]:
    named: dict[str, str] = settings.get("id2label") or {}
    return tuple(named[number] for number in sorted(named, key=int))


def learned_head(config: ModelConfig) -> Head | None:
    """The head that a model, or the last adapter over it, was trained to classify with; None where it was not.

    Raises:
        ModelError: a file cannot be read.
    """
    adapter = Path(config.adapters[-1]).expanduser() / LABELS if config.adapters else None
    if adapter is not None and adapter.exists():
        settings = read_json(adapter)
        return Head(settings["kind"], _named(settings), settings.get("problem_type"))
    file = model_folder(config) / "config.json"
    settings = read_json(file) if file.exists() else {}
    for kind, ending in ENDINGS.items():
        if any(name.endswith(ending) for name in settings.get("architectures") or ()):
            return Head(kind, _named(settings) or ("LABEL_0", "LABEL_1"), settings.get("problem_type"))
    return None


def write_labels(folder: Path, head: Head) -> None:
    """Write beside an adapter what its head means, which its base does not know."""
    settings = {"kind": head.kind, "id2label": dict(enumerate(head.labels)), "problem_type": head.problem}
    (folder / LABELS).write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def backbone(network: PreTrainedModel, head: Head) -> nn.Module:
    """The part that makes hidden states; of a model with two parts, the one the head stands on."""
    if head.kind in ("causal", "seq2seq"):
        return network.get_decoder()
    return network.base_model


def modules(network: PreTrainedModel, head: Head) -> list[str]:
    """Names of the modules with weights that stand on the backbone, of a head that may be new.

    A pooler counts: models that were trained to fill gaps come without one, and it is then as new as the head.
    """
    if not head.is_new:
        return []
    below = network.base_model
    pooler = ["pooler"] if head.kind == "sequence" and isinstance(getattr(below, "pooler", None), nn.Module) else []
    above = [name for name, part in network.named_children() if part is not below and list(part.parameters())]
    return [*above, *pooler]


def belongs(name: str, network: PreTrainedModel, head: Head) -> bool:
    """Whether a weight may be missing, or too much, in the files of a model that was saved with another head."""
    if head.kind in ("causal", "seq2seq"):
        return False
    below = [name for name, _ in network.base_model.named_children()]
    bare = name.removeprefix(network.base_model_prefix + ".")
    inside = bare != name or bare.split(".")[0] in below
    return not inside or bare.split(".")[0] == "pooler" or bare.endswith("position_ids")


def through(network: PreTrainedModel, head: Head, hidden_SLD: Tensor, ids_SL: Tensor) -> Tensor:
    """logits of the network's own head over hidden states computed elsewhere.

    hidden_SLD -> logits [S, C] for a sequence head, which is given one pooled row for each sequence (L = 1); else
    [S, L, C or V].
    """
    below: Any = backbone(network, head)
    if head.kind == "seq2seq":
        given: Any = BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_SLD)  # type: ignore[arg-type]
        with _handing(below, given):
            return network(encoder_outputs=given, decoder_input_ids=ids_SL, use_cache=False).logits
    if network.config.is_encoder_decoder:
        given = Seq2SeqModelOutput(last_hidden_state=hidden_SLD)  # type: ignore[arg-type]
        with _handing(below, given):
            return network(input_ids=ids_SL).logits
    given = BaseModelOutputWithPoolingAndCrossAttentions(
        last_hidden_state=hidden_SLD,  # type: ignore[arg-type]
        pooler_output=_pool(below, hidden_SLD) if head.kind == "sequence" else None,
    )
    with _handing(below, given):
        return network(input_ids=ids_SL).logits


def _pool(below: nn.Module, hidden_S1D: Tensor) -> Any:
    """pooled_SD by the backbone's own pooler; None where it has none."""
    pooler: Any = getattr(below, "pooler", None)
    if isinstance(pooler, nn.Linear):  # ALBERT's, whose activation is a module beside it
        activation: Any = below.pooler_activation
        return activation(pooler(hidden_S1D[:, 0]))
    return pooler(hidden_S1D) if isinstance(pooler, nn.Module) else None


@contextmanager
def _handing(below: nn.Module, given: Any) -> Generator[None]:
    """The backbone answers with what it is given, whatever it is called with."""
    below.forward = lambda *args, **kwargs: given  # type: ignore[method-assign]
    try:
        yield
    finally:
        del below.forward


Pooling = Literal["first", "last", "mean"]


def pooled(hidden_TD: Tensor, lengths: tuple[int, ...], offsets: tuple[int, ...], pooling: Pooling) -> Tensor:
    """hidden_SD: one row for each sequence, its first, its last, or the mean of all."""
    device = hidden_TD.device
    if pooling == "mean":
        counts_S = torch.tensor(lengths, dtype=torch.int64, device=device)
        owner_T = torch.repeat_interleave(torch.arange(len(lengths), device=device), counts_S, output_size=sum(lengths))
        sums_SD = hidden_TD.new_zeros(len(lengths), hidden_TD.shape[1]).index_add(0, owner_T, hidden_TD)
        return sums_SD / counts_S[:, None].to(hidden_TD.dtype)
    rows = offsets[:-1] if pooling == "first" else [end - 1 for end in offsets[1:]]
    return hidden_TD[torch.tensor(rows, dtype=torch.int64, device=device)]
