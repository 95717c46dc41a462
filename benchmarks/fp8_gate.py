"""Whether an 8-bit floating-point base learns what a plain one learns: two runs over a *trained* model, step by step.

    python benchmarks/fp8_gate.py                                      nano, on text of recipes/nano
    python benchmarks/fp8_gate.py --model DIR --train zh_train.jsonl en_train.jsonl --held zh_valid.jsonl en_valid.jsonl

Both runs take LoRA r16 through the layers written by hand, the same batches in the same order, from the same adapters.
Printed: the training loss (means of 50 steps) of both, how far apart their curves lie, and the loss on held-out text
before and after.  The gate is 1 %: the last line says `within` or `beyond`, and the exit code is 0 or 1.  On a CPU the
products are those of the rounded numbers, summed in float32; a GPU multiplies 8-bit numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luthier.base.records import Text, Where
from luthier.data.batch import Group, Tokens, collate
from luthier.data.render import Renderer
from luthier.engine.config import OptimConfig
from luthier.engine.mesh import Mesh, open_mesh
from luthier.engine.optim import Optimizer
from luthier.engine.step import begin, evaluate
from luthier.model import ability, methods
from luthier.model.config import Lora, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.model.pointwise import Plain
from luthier.objectives.config import Pretrain
from luthier.objectives.language import Language

PROSE = Path(__file__).resolve().parents[1] / "recipes" / "nano" / "text"
GATE = 0.01


@dataclass(frozen=True)
class Curve:
    """One run."""

    losses: tuple[float, ...]
    held_before: float
    held_after: float


def texts(files: Sequence[Path]) -> list[str]:
    """Documents: the `text` of JSON lines, or paragraphs."""
    found: list[str] = []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        found += [json.loads(line)["text"] if file.suffix == ".jsonl" else line for line in lines if line.strip()]
    return found


def windows(renderer: Renderer, documents: Sequence[str], length: int) -> list[Group]:
    """Every document's tokens, in pieces."""
    found: list[Group] = []
    for document in documents:
        tokens = renderer.text(Text(document, Where("", 0)))
        for start in range(0, len(tokens) - 1, length):
            part = slice(start, start + length)
            found.append(Group((Tokens(tokens.ids[part], tokens.weights[part]),)))
    return found


def packs(groups: Sequence[Group], order: Sequence[int], tokens: int) -> list[list[int]]:
    """Groups in that order, as many at once as `tokens` hold."""
    found: list[list[int]] = [[]]
    held = 0
    for index in order:
        if found[-1] and held + len(groups[index]) > tokens:
            found.append([])
            held = 0
        found[-1].append(index)
        held += len(groups[index])
    return found


def build(options: argparse.Namespace, mesh: Mesh, quant: str | None) -> Model:
    settings = {"path": options.model, "dtype": options.dtype, **({"quant": {"method": quant}} if quant else {})}
    config = ModelConfig.model_validate(settings)
    model = load_model(config, mesh.device, tokenizer=load_tokenizer(config), trained=True)
    torch.manual_seed(options.seed)
    methods.apply(model, Lora(rank=16, alpha=32))
    kernels = ability.kernels(mesh.device)
    reason = model.by_hand(Plain() if isinstance(kernels, str) else kernels)
    assert reason is None, reason
    return model


def run(options: argparse.Namespace, mesh: Mesh, quant: str | None) -> Curve:
    model = build(options, mesh, quant)
    objective = Language(Pretrain(), Renderer(model.tokenizer))
    renderer = objective.renderer
    train, held = (
        windows(renderer, options.texts, options.length),
        windows(renderer, options.held_texts, options.length),
    )
    held_packs = packs(held, range(len(held)), options.tokens)
    judge = [collate([held[i] for i in pack], pack) for pack in held_packs[: options.held_batches]]
    rng = np.random.default_rng(options.seed)
    steps: list[list[int]] = []
    while len(steps) < options.steps:
        steps += packs(train, rng.permutation(len(train)).tolist(), options.tokens)
    optimizer = Optimizer(model.trained(), OptimConfig(learning_rate=options.learning_rate), lambda _: 1.0)
    model.eval_mode()
    before = evaluate(model, objective, judge, mesh).metrics["loss"]
    model.train_mode("some")
    losses: list[float] = []
    for pack in steps[: options.steps]:
        optimizer.zero_grad()
        batch = collate([train[i] for i in pack], pack).to(mesh.device)
        losses.append(begin(model, objective, [batch], mesh, max_norm=1.0).read().loss)
        optimizer.step(1.0)
    model.eval_mode()
    return Curve(tuple(losses), before, evaluate(model, objective, judge, mesh).metrics["loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano", help="a folder with trained weights")
    parser.add_argument("--train", nargs="+", type=Path, help=".jsonl with `text`, or plain text")
    parser.add_argument("--held", nargs="+", type=Path, help="the same, never trained on")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=4096, help="of a step")
    parser.add_argument("--length", type=int, default=512, help="longest sequence in tokens")
    parser.add_argument("--held_batches", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.train is None) != (options.held is None):
        parser.error("--train and --held go together")
    if options.train:
        options.texts, options.held_texts = texts(options.train), texts(options.held)
    else:
        prose = texts([PROSE / "prose.en.txt", PROSE / "prose.zh.txt"])
        options.texts = [text for number, text in enumerate(prose) if number % 10]
        options.held_texts = prose[::10]
    with open_mesh(options.device) as mesh:
        plain, rounded = run(options, mesh, None), run(options, mesh, "fp8")
    for start in range(0, options.steps, 50):
        means = [np.mean(curve.losses[start : start + 50]) for curve in (plain, rounded)]
        print(f"steps {start + 1:4} to {min(start + 50, options.steps):4}   plain {means[0]:.4f}   fp8 {means[1]:.4f}")
    apart = np.abs(np.array(rounded.losses) / np.array(plain.losses) - 1)
    held = rounded.held_after / plain.held_after - 1
    print(f"training losses apart: {apart.mean():.3%} on average, {apart.max():.3%} at most")
    print(
        f"held-out loss: plain {plain.held_before:.4f} -> {plain.held_after:.4f}, "
        f"fp8 {rounded.held_before:.4f} -> {rounded.held_after:.4f}, {held:+.3%}"
    )
    good = bool(apart.mean() <= GATE and abs(held) <= GATE)
    print(f"{'within' if good else 'beyond'} {GATE:.0%}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
