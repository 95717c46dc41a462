"""How fast this GPU multiplies matrices, and how many operations a training step must have.

    python benchmarks/ceiling.py

The ceiling is that of one product in a short burst, which no step keeps up: after some tenths of a second heat and
power lower the clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIDE, ROUNDS, AT_ONCE = 8192, 7, 5


def operations(shape: Mapping[str, Any], *, full: bool, lengths: Sequence[int]) -> float:
    """Of one step, each multiplication and each addition counted, nothing computed twice.

    Every weight of a linear layer and of the head meets every token twice, forward and for the input's gradient, and a
    third time where it is trained.  Causal attention has two products of half a square, and five backward.  Adapters,
    less than a hundredth of it, are not counted.

    Args:
        shape: sizes by their names in a Qwen2 config.
        lengths: tokens of each sequence.
    """
    width, wide, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    groups = 2 * shape["num_key_value_heads"] / shape["num_attention_heads"]
    weights = layers * width * (width * (2 + groups) + 3 * wide) + shape["vocab_size"] * width
    linear = 2 * weights * sum(lengths) * (3 if full else 2)
    attention = 7 * layers * width * sum(length**2 for length in lengths)
    return linear + attention


def ceiling() -> float:
    """Operations a second of one bfloat16 product of random square matrices, the best of some rounds."""
    import torch

    left, right = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds: list[float] = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(AT_ONCE):
            left @ right
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / AT_ONCE / 1e3)
    return 2 * SIDE**3 / min(seconds[1:])


if __name__ == "__main__":
    print(f"{ceiling() / 1e12:.0f} TFLOP/s")
