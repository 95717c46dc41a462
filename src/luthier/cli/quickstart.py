"""`luthier quickstart`: teach the bundled model a name, and show its answers before and after."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from luthier.base.config import Config, Named
from luthier.base.console import Console
from luthier.base.rundir import RunDir
from luthier.model.nano import NAME, nano_folder
from luthier.run.plots import curve, sparkline

QUESTIONS = ("你是谁？", "Who made you?", "What can I do on a rainy day?")


class QuickstartConfig(Config):
    """What the quickstart teaches, and where it works."""

    model_name: tuple[str, ...] = Field(("小琴", "Viola"), min_length=1, max_length=2)
    """Name the model learns: one for both languages, or two (Chinese, English)."""
    model_author: tuple[str, ...] = Field(("琴匠工坊", "Luthier"), min_length=1, max_length=2)
    """Author the model learns: one for both languages, or two (Chinese, English)."""
    output_dir: Named = "runs/quickstart"
    """Where everything goes."""
    steps: int = Field(120, ge=1)
    """Fine-tuning steps."""
    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of the fine-tuning."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a quickstart made."""

    data: Sequence[Path]
    run: Path
    adapter: Path


@dataclass(slots=True)
class Clock:
    """Says how long each part took."""

    console: Console
    since: float = field(default_factory=time.monotonic)

    def lap(self, what: str) -> None:
        """Tell the seconds since the last lap."""
        now = time.monotonic()
        self.console.say(f"{what}: {now - self.since:.0f} s", style="bold")
        self.since = now


def quickstart(options: QuickstartConfig, console: Console) -> Path:
    """Ask the bundled model, fine-tune it, ask it again; returns the fine-tuning's run directory."""
    from luthier.run import quickstart as parts
    from luthier.run.train import train

    whole, clock = Clock(console), Clock(console)
    place = Path(options.output_dir)
    console.say("1/3  Asking the bundled base model", style="bold")
    before = parts.ask(None, QUESTIONS)
    clock.lap("     asked")

    console.say("2/3  Fine-tuning it with LoRA on who it is and on a little chat", style="bold")
    data = parts.bundled_data(place)
    config = parts.finetuning(
        data,
        name=options.model_name,
        author=options.model_author,
        output_dir=place,
        steps=options.steps,
        seed=options.seed,
    )
    run = train(config, console)
    adapter = parts.latest(run)
    clock.lap("     fine-tuned")

    console.say("3/3  Asking it again", style="bold")
    after = parts.ask(adapter, QUESTIONS)
    clock.lap("     asked")
    rows = zip(QUESTIONS, before, after, strict=True)
    console.table("Answers", [{"question": q, "before": b, "after": a} for q, b, a in rows], result=True)
    _show(Outcome(data, run, adapter), options, console)
    whole.lap("Quickstart finished")
    return run


def _show(outcome: Outcome, options: QuickstartConfig, console: Console) -> None:
    """The loss curve, where everything lies, and what to do next."""
    _, losses = curve(RunDir(outcome.run).read_rows("metrics.jsonl"), "loss")
    picture = outcome.run / "plots" / "loss.png"
    console.say(f"Loss  {sparkline(losses)}  {losses[0]:.2f} -> {losses[-1]:.2f}  {picture}")
    places = [{"what": what, "path": str(path)} for what, path in _places(outcome).items()]
    console.table("Where everything lies", places)
    for purpose, command in next_commands(outcome, options).items():
        console.say(f"{purpose}:\n  {command}")


def _places(outcome: Outcome) -> dict[str, Path]:
    return {
        f"base model, --model {NAME}": nano_folder(),
        **{f"data: {path.stem}": path for path in outcome.data},
        "run": outcome.run,
        "adapter": outcome.adapter,
        "report": outcome.run / "report.md",
        "trained tokens, coloured": outcome.run / "preview.html",
    }


def next_commands(outcome: Outcome, options: QuickstartConfig) -> dict[str, str]:
    """What to try now: a purpose and the exact command each."""
    run = str(outcome.run)
    longer = ["--max_steps", str(2 * options.steps), "--allow_change", "train.max_steps"]
    commands = {
        "Talk to it": ["infer", "--adapters", str(outcome.adapter)],
        "Serve it to OpenAI's clients": ["deploy", "--adapters", str(outcome.adapter), "--served_model_name", "viola"],
        "Teach it your own chats": ["sft", "--model", NAME, "--dataset", "MY.jsonl", "--num_train_epochs", "3"],
        "See which tokens are trained": ["preview", str(outcome.data[-1]), "--model", NAME],
        "Train on from where it ended": ["train", f"{run}/config.yaml", "--resume_from_checkpoint", run, *longer],
    }
    return {purpose: shlex.join(["luthier", *words]) for purpose, words in commands.items()}
