"""How long a training takes, by the work of a token and rates that were measured: a guess that says what it rests on.

The share of a GPU's published rate that steps reach was measured on one H200 with Qwen2.5's shapes of 7B (LoRA) and
0.5B (full tuning); docs/performance.md has the tables.  For other devices the same share is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.model.layer import Keep
from luthier.run.forecast.hardware import Device

_LARGE = 3_000_000_000
"""Weights from which the shares of the larger shape are taken."""
_SMALL = 200_000_000
"""Weights below which launches, not products, take the time, and no share is of use."""

# Share of the published dense bfloat16 rate, by (large, recomputed).
_BY_HAND = {(True, False): 0.58, (True, True): 0.62, (False, False): 0.48, (False, True): 0.47}
_BY_TRANSFORMERS = {False: 0.26, True: 0.28}
_FP8 = {False: 0.80, True: 0.91}
_FEW_BITS = {("bnb", 4): 0.90, ("bnb", 8): 0.80, ("hqq", 8): 0.75, ("hqq", 4): 0.73, ("hqq", 3): 0.68, ("hqq", 2): 0.73}
"""Speed beside an unrounded base."""
_ANOTHER = 0.985
"""What each further device brings, without sharding (two H200)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one token costs."""

    weights: int
    """Numbers it is multiplied with: all but those that are only looked up."""
    moving: int
    """Of these, those with a gradient of their own."""
    attention: float
    """FLOP of a forward pass through attention."""

    def flops(self, *, recomputed: float) -> float:
        """FLOP of a step.  recomputed: share of the forward pass that is run again."""
        forward = 2.0 * self.weights + self.attention
        backward = 2.0 * self.weights + 2.0 * self.moving + 2.5 * self.attention
        return forward * (1.0 + recomputed) + backward


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast, and why that is believed."""

    tokens_per_second: float
    share: float
    """Of the published rate."""
    reason: str


RECOMPUTED: dict[Keep, float] = {"all": 0.0, "most": 0.0, "some": 0.55, "input": 1.0}
"""Share of the forward pass that is run again: the wide products are about half of it."""


def pace(
    device: Device, devices: int, work: Work, keep: Keep, *, by_hand: bool, quant: tuple[str, int] | None, dtype: str
) -> Pace | str:
    """Tokens a second on all devices together, or why nobody can say."""
    if device.tflops is None:
        return f"no rate is known for {device.name}; the first steps of a run tell"
    if dtype != "bfloat16":
        return f"no rate was measured in {dtype}"
    if work.weights < _SMALL:
        return "no rate was measured for a model this small; the first steps of a run tell"
    recomputed = keep in ("some", "input")
    if not by_hand:
        share, source = _BY_TRANSFORMERS[recomputed], "transformers' layers, measured on an H200 at 0.5B"
    else:
        large = work.weights >= _LARGE
        share = _BY_HAND[large, recomputed]
        source = f"measured on an H200 at {'7B, LoRA' if large else '0.5B, full tuning'}"
        if quant is not None and quant[0] == "fp8":
            share, source = _FP8[recomputed], "measured on an H200 at 7B, fp8"
        elif quant is not None:
            share *= _FEW_BITS.get(quant, 0.7)
            source += f", {quant[0]} {quant[1]} bits"
    rate = share * device.tflops * 1e12 / work.flops(recomputed=RECOMPUTED[keep])
    if devices > 1:
        rate *= 1 + (devices - 1) * _ANOTHER
    where = "" if device.name == "H200" else ", assumed to be the same here"
    return Pace(rate, share, f"{share:.0%} of {device.tflops:,.0f} TFLOP/s (published): the share {source}{where}")
