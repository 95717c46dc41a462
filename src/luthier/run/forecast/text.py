"""A forecast for people, as tables and as a page, and for programs: pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape

from luthier.base import webpage
from luthier.base.records import Json
from luthier.base.sizes import share, told
from luthier.run.forecast.forecast import Forecast
from luthier.run.forecast.hardware import GIB
from luthier.run.forecast.pace import Pace
from luthier.run.plan import count
from luthier.run.recompute import room
from luthier.run.watch import duration

KEPT = {
    "all": "everything is kept",
    "most": "the cheapest is computed again",
    "some": "the widest is computed again",
    "input": "layers are computed again",
}


@dataclass(frozen=True)
class Section:
    """One table with what is to be said below it."""

    title: str
    rows: Sequence[Mapping[str, Json]] = ()
    lines: Sequence[str] = field(default_factory=list[str])


def sections(plan: Forecast) -> list[Section]:
    """The plan from top to bottom."""
    facts = [{"": name, " ": text} for name, text in _facts(plan).items()]
    found = [Section("Plan", facts), Section(_memory_title(plan), _memory(plan), _below(plan))]
    disk = [{"": name, " ": text} for name, text in _disk(plan).items()]
    found.append(Section("Disk", disk))
    found.append(Section("", (), [verdict(plan), *(f"Note: {note}." for note in plan.notes)]))
    return found


def _facts(plan: Forecast) -> dict[str, str]:
    lot, moving = plan.data, plan.trained / max(1, plan.parameters)
    samples = f"{lot.samples:,} samples, {lot.tokens:,} tokens an epoch" if lot.tokens is not None else "streamed"
    if lot.supposed:
        samples = f"none read; samples of {lot.longest:,} tokens are supposed"
    steps = "not known without rows or --max_steps; each of" if lot.steps is None else f"{lot.steps:,} of"
    if lot.tokens and lot.trained is not None:
        samples += f", {share(lot.trained, lot.tokens)} trained"
    where = plan.device.name if plan.devices == 1 else f"{plan.devices} x {plan.device.name}"
    held = (
        {"none": " (each holds all weights)", "full": " (weights are split, FSDP2)"}[plan.shard]
        if plan.devices > 1
        else ""
    )
    epochs = f", {lot.epochs:.3g} epoch{'s' * (lot.epochs != 1)}" if lot.epochs is not None else ""
    facts = {
        "model": f"{plan.model}, {count(plan.parameters)} parameters, {plan.dtype}",
        "trained": f"{plan.trained:,} parameters ({moving:.2%}) by {plan.method}, {plan.objective}",
        "layers": plan.layers,
        "data": samples,
        "longest sample": f"{lot.longest:,} tokens",
    }
    if lot.filled is not None:
        facts["filled"] = f"{lot.filled:.1%} of {'packs' if plan.packed else 'padded micro-batches'} are tokens"
    facts |= {
        "steps": f"{steps} {lot.per_step:,} samples{epochs}",
        "micro-batch": f"at most {plan.micro_tokens:,} tokens",
        "device": f"{where}, {plan.device.gib:.1f} GiB{held}",
    }
    if isinstance(plan.pace, Pace):
        seconds = plan.seconds
        took = f"about {duration(seconds)}, " if seconds is not None else ""
        facts["time"] = f"{took}{plan.pace.tokens_per_second:,.0f} tokens/s: {plan.pace.reason}"
    else:
        facts["time"] = f"not known: {plan.pace}"
    return facts


def _kept(plan: Forecast) -> dict[str, str]:
    """Words for the ways of keeping; where transformers runs the layers, "most" is everything."""
    ours = plan.layers == "Luthier's kernels"
    return KEPT if ours else {**KEPT, "most": KEPT["all"]}


def _memory_title(plan: Forecast) -> str:
    return f"Memory of {'each device' if plan.devices > 1 else plan.device.name}, GiB"


def _memory(plan: Forecast) -> list[dict[str, Json]]:
    rows: list[dict[str, Json]] = []
    words = _kept(plan)
    for demand in plan.demands:
        numbers = asdict(demand)
        row: dict[str, Json] = {"": f"{'> ' if demand.keep == plan.chosen else '  '}{words[demand.keep]}"}
        for name in ("weights", "gradients", "optimizer", "average", "activations", "working"):
            if name != "average" or demand.average:
                row[name] = f"{numbers[name] / GIB:.2f}"
        rows.append({**row, "peak": f"{demand.total / GIB:.2f}", "fits": "yes" if demand.fits else "no"})
    return rows


def _below(plan: Forecast) -> list[str]:
    device = plan.device
    lines = [
        f"{device.available / GIB:.1f} GiB can be held there; a plan takes {room(device.available) / GIB:.1f} of them: "
        "the allocator leaves gaps. The peak is that of the fullest micro-batch."
    ]
    if plan.logits:
        lines.append(f"Working room holds up to {plan.logits / GIB:.2f} GiB of vocabulary scores at once.")
    if plan.evaluation is not None:
        lines.append(f"An evaluation batch takes {plan.evaluation / GIB:.2f} GiB.")
    words = _kept(plan)
    most = [f"{number:,} ({words[keep]})" for keep, number in plan.largest.items()]
    if any(plan.largest.values()):
        lines.append(f"Largest --per_device_train_batch_size that fits: {', '.join(most)}.")
    return lines


def _disk(plan: Forecast) -> dict[str, str]:
    each = sum(plan.checkpoint.values())
    files = ", ".join(f"{name} {told(size)}" for name, size in plan.checkpoint.items())
    if plan.checkpoints is None:
        return {"checkpoint": f"{told(each)}: {files}", "in all": "all are kept (--save_total_limit null)"}
    most = f"at most {told(each * plan.checkpoints)}: {plan.checkpoints - 2} kept, the best, and one being written"
    return {"checkpoint": f"{told(each)}: {files}", "in all": most}


def verdict(plan: Forecast) -> str:
    """One sentence: whether it fits, and what to change."""
    where = plan.device.name if plan.devices == 1 else f"{plan.devices} x {plan.device.name}"
    peak = f"{plan.demand.total / GIB:.1f} of {plan.device.available / GIB:.1f} GiB"
    if plan.fits:
        return f"It fits on {where}: {peak}, {_kept(plan)[plan.chosen]}."
    if plan.demand.fits:
        return f"Training fits on {where}, an evaluation does not. Lower --per_device_eval_batch_size."
    return f"It does not fit on {where}: {peak}. Try " + ", or ".join(plan.suggestions[:3]) + "."


def to_json(plan: Forecast) -> dict[str, Json]:
    """Everything as JSON values; sizes in bytes, time in seconds."""
    whole = asdict(plan)
    demands = [{**asdict(demand), "total": demand.total} for demand in plan.demands]
    pace: Json = {"unknown": plan.pace} if isinstance(plan.pace, str) else asdict(plan.pace)
    whole |= {"demands": demands, "pace": pace, "fits": plan.fits, "peak": plan.demand.total, "seconds": plan.seconds}
    whole["available"], whole["checkpoint_bytes"] = plan.device.available, sum(plan.checkpoint.values())
    whole["verdict"] = verdict(plan)
    return whole


def html(plans: Mapping[str, Forecast]) -> str:
    """A page that needs nothing else and no network.

    Args:
        plans: by the names of their stages; the name of a run without stages is empty.
    """
    body: list[str] = []
    for name, plan in plans.items():
        title = f"{name}: {plan.model}" if name else plan.model
        body += [f"<h1>{escape(title)}</h1>", f"<p class='{'yes' if plan.fits else 'no'}'>{escape(verdict(plan))}</p>"]
        for section in sections(plan)[:-1]:
            body.append(f"<h2>{escape(section.title)}</h2>" + webpage.table(section.rows))
            body += [f"<p>{escape(line)}</p>" for line in section.lines]
            if section.title.startswith("Memory"):
                body.append(_bars(plan))
        body += [f"<p>Note: {escape(note)}.</p>" for note in plan.notes]
    return webpage.page(escape(f"Plan: {next(iter(plans.values())).model}"), body, webpage.PLAIN + _STYLE)


_COLOURS = {
    "weights": "#3b6ea5", "gradients": "#d1495b", "optimizer": "#edae49", "average": "#8d6a9f",
    "activations": "#66a182", "working": "#9a9a9a",
}  # fmt: skip


def _bars(plan: Forecast) -> str:
    """A bar for each way of keeping, with a line where the device ends."""
    widest = max(plan.device.available, *(demand.total for demand in plan.demands))
    height, bars = 26, list[str]()
    for number, demand in enumerate(plan.demands):
        left, values = 0.0, asdict(demand)
        for name, colour in _COLOURS.items():
            width = 700 * values[name] / widest
            title = f"<title>{name}: {values[name] / GIB:.2f} GiB</title>"
            place = f"x='{left:.1f}' y='{number * height}' width='{width:.1f}' height='20'"
            bars.append(f"<rect {place} fill='{colour}'>{title}</rect>")
            left += width
    edge, tall = 700 * plan.device.available / widest, height * len(plan.demands)
    ends = f"x1='{edge:.1f}' x2='{edge:.1f}' y1='0' y2='{tall}'"
    bars.append(f"<line {ends} stroke='currentColor' stroke-dasharray='4 3'/>")
    legend = " ".join(f"<span><i style='background:{colour}'></i>{name}</span>" for name, colour in _COLOURS.items())
    return f"<svg viewBox='0 0 704 {tall}' width='704' role='img'>{''.join(bars)}</svg><p class='legend'>{legend}</p>"


_STYLE = """.yes,.no{padding:.6rem .8rem;border-left:5px solid #66a182;background:var(--soft)}
.no{border-color:#d1495b}.legend span{margin-right:1rem}
.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
"""
