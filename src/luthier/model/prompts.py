"""What prompt tuning, prefix tuning and P-tuning put before every sequence, over padded batches.

PEFT's own generation does not fit newer transformers; it is not used.

Legend: S sequences, B answers under construction, L tokens of the longest one, P virtual tokens, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.base.errors import ConfigError
from luthier.model.calling import padded, unpadded, within
from luthier.model.causal import Model
from luthier.model.method import Prefix, Prompt, PTuning

if TYPE_CHECKING:
    from peft import PeftModel


class Before:
    """Runs a model's decoder behind the virtual tokens of a PEFT model around it.

    Args:
        network: the PEFT model, of a prompt-learning type.
    """

    def __init__(self, network: PeftModel):
        self.network = network
        config: Any = network.active_peft_config
        self.tokens: int = config.num_virtual_tokens
        # Renamed in transformers 5.2x; the old name warns there.
        base: Any = network.get_base_model()
        takes = inspect.signature(type(base.get_decoder()).forward).parameters
        self.cache = "cache" if "cache" in takes else "past_key_values"
        self.in_every_layer = str(getattr(config.peft_type, "value", config.peft_type)) == "PREFIX_TUNING"

    def hidden(self, decoder: Any, ids_T: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """hidden_TD of the real tokens."""
        network: Any = self.network
        within_SL = within(lengths, ids_T.device)
        ids_SL = padded(ids_T, within_SL)
        rows = len(ids_SL)
        mask_SP = within_SL.new_ones(rows, self.tokens)
        mask = torch.cat([mask_SP, within_SL], dim=1).long()
        if self.in_every_layer:
            positions = torch.arange(self.tokens, mask.shape[1], device=ids_SL.device).expand_as(ids_SL)
            cache = network.get_prompt(rows, max_cache_len=mask.shape[1])
            inputs: dict[str, Any] = {"input_ids": ids_SL, "attention_mask": mask, self.cache: cache}
            return unpadded(decoder(**inputs, position_ids=positions)[0], lengths)
        embedded_SLD = network.get_base_model().get_input_embeddings()(ids_SL)
        prompts_SPD = network.get_prompt(rows).to(embedded_SLD.dtype)
        together_SXD = torch.cat([prompts_SPD, embedded_SLD], dim=1)
        hidden_SXD = decoder(inputs_embeds=together_SXD, attention_mask=mask, use_cache=False)[0]
        return unpadded(hidden_SXD[:, self.tokens :], lengths)

    def go_on(self, decoder: Any, ids_BL: Tensor, mask_BL: Tensor, choose: Callable[[Tensor], Tensor | None]) -> None:
        """Add token after token to prompts that are padded on the left.

        Args:
            choose: given hidden_BD of the last tokens, the next tokens ids_B, or None at the end.
        """
        network: Any = self.network
        rows = len(ids_BL)
        mask = torch.cat([mask_BL.new_ones(rows, self.tokens), mask_BL], dim=1)
        positions = mask.cumsum(1) - 1
        inputs: dict[str, Any]
        if self.in_every_layer:
            inputs = {"input_ids": ids_BL, self.cache: network.get_prompt(rows, max_cache_len=-1)}
            inputs["position_ids"] = positions[:, self.tokens :].clamp(min=0)
        else:
            embedded_BLD = network.get_base_model().get_input_embeddings()(ids_BL)
            prompts_BPD = network.get_prompt(rows).to(embedded_BLD.dtype)
            inputs = {"inputs_embeds": torch.cat([prompts_BPD, embedded_BLD], dim=1), "position_ids": positions}
        while True:
            output = decoder(**inputs, attention_mask=mask, use_cache=True)
            ids_B = choose(output[0][:, -1])
            if ids_B is None:
                return
            mask = torch.cat([mask, mask.new_ones(rows, 1)], dim=1)
            inputs = {"input_ids": ids_B[:, None], self.cache: output[self.cache]}
            inputs["position_ids"] = mask.sum(1, keepdim=True) - 1


@torch.no_grad()
def begin(model: Model, method: Prompt | Prefix | PTuning) -> None:
    """Let the virtual tokens start where the method says; PEFT has filled them with random numbers.

    Raises:
        ConfigError: the text to start from has no tokens.
    """
    if isinstance(method, PTuning) or method.start == "random" or (isinstance(method, Prefix) and method.projection):
        return
    assert model.before is not None
    network: Any = model.network
    encoder = network.prompt_encoder[network.active_adapter]
    ids_P = _first_tokens(model, method)
    if isinstance(method, Prompt):
        encoder.embedding.weight.copy_(model.base.get_input_embeddings()(ids_P))
        return
    decoder: Any = model.base.get_decoder()
    with model.arithmetic():
        cache = decoder(input_ids=ids_P[None], use_cache=True)[model.before.cache]
    # As PEFT lays a prefix out: for each token the key and the value of every layer, head by head.
    layers = [part[0].transpose(0, 1) for layer in cache.layers for part in (layer.keys, layer.values)]
    flat_PX = torch.cat([part.flatten(1) for part in layers if len(part) == len(ids_P)], dim=1).float()
    if flat_PX.shape != encoder.embedding.weight.shape:
        raise ConfigError(
            "some layers keep fewer keys and values, or keep them in another shape",
            where="method.start",
            fix="Use start random",
        )
    encoder.embedding.weight.copy_(flat_PX)


def _first_tokens(model: Model, method: Prompt | Prefix) -> Tensor:
    """ids_P of the tokens that virtual tokens start as."""
    if isinstance(method, Prompt) and method.text:
        ids = model.tokenizer(method.text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError("the text has no tokens", where="method.text")
        ids = (ids * (method.virtual_tokens // len(ids) + 1))[: method.virtual_tokens]
        return torch.tensor(ids, device=model.device)
    return torch.randint(len(model.tokenizer), (method.virtual_tokens,)).to(model.device)
