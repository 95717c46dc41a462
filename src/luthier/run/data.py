"""The data of a run: read, tokenised and shown, and the samples that its steps take from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import orjson
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from luthier.base.errors import DataError
from luthier.base.rundir import write_atomic
from luthier.data import order, preview, report
from luthier.data.dataset import Prepared, encoding_of, prepare, stream, together
from luthier.data.encode import Encoding
from luthier.data.joined import Joined
from luthier.data.loader import Shuffled, Source, Streamed, Varied
from luthier.data.tokens import Groups, Kinds
from luthier.objectives.setting import Part, Whole
from luthier.run.config import RunConfig
from luthier.run.parts import Run
from luthier.run.rows import PREVIEWED

PREVIEW_ROWS = 20
"""Samples shown in preview.html."""


def build_data(run: Run, parts: Sequence[Part], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Tokenise, report, and refuse what cannot be learned from.  Processes take turns: one works, the others reuse."""
    with run.mesh.leader_first():
        found = tokenise(run, parts)
    prepared = together(found)
    if run.mesh.leads:
        _show_data(run, prepared, tokenizer)
    return learnable(run, parts, found, prepared, str(run.directory.path / "rejected.jsonl"))


def tokenise(run: Run, parts: Sequence[Part]) -> list[Prepared]:
    """The data of each part, encoded now or found in the cache."""
    found: list[Prepared] = []
    with run.console.progress("Reading and tokenising rows") as bar:
        for part in parts:
            encoding, note = encoding_for(run, part), part.objective.note
            note = f"{part.name}: {note}" if part.name and note else note
            found.append(prepare(part.data, encoding, template_note=note, seed=run.config.seed, progress=bar.advance))
    return found


def learnable(
    run: Run, parts: Sequence[Part], found: Sequence[Prepared], prepared: Prepared, rejected: str = ""
) -> Prepared:
    """All parts' data as it is trained on, once it is known that something can be learned from each.

    prepared: the data of all `found` together.
    rejected: where rows that were left out are listed.
    """
    for part, mine in zip(parts, found, strict=True):
        report.refuse(mine.report, part.data, mine.rejected, rejected)
    return replace(prepared, train=Joined(prepared.train, run.max_length)) if run.config.data.combine else prepared


def encoding_for(run: Run, part: Part) -> Encoding:
    """How rows become samples of one part."""
    learned = part.objective
    return encoding_of(part.data, learned.encode, learned.key, learned.stop_ids, run.max_length, learned.task)


def _show_data(run: Run, prepared: Prepared, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write down, for people and programs, what will be trained on before anything is."""
    run.directory.write_json("data_report.json", prepared.report.to_json())
    rows = preview.preview_rows(prepared.train, tokenizer, PREVIEW_ROWS)
    run.directory.write_text("preview.html", preview.page(rows, prepared.report))
    shown = (prepared.train[number] for number in preview.firsts(prepared.train, PREVIEW_ROWS))
    ids = [
        orjson.dumps([one.ids.tolist() for one in group.sequences], option=orjson.OPT_APPEND_NEWLINE) for group in shown
    ]
    write_atomic(run.directory.file(PREVIEWED), b"".join(ids))
    if prepared.rejected:
        lines = [orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in prepared.rejected]
        write_atomic(run.directory.file("rejected.jsonl"), b"".join(lines))
    run.console.table("Data", report.table(prepared.report))
    for line in report.notes(prepared.report):
        run.console.say(line)


def longest(run: Run, data: Prepared) -> int:
    """Tokens of the longest sample; of a streamed run, and without any row, of the longest there may be."""
    return run.max_length if run.config.data.streaming else int(data.train.lengths.max(initial=0)) or run.max_length


def fullest(run: Run, data: Prepared) -> int:
    """Tokens of the fullest micro-batch that a step can have."""
    train = run.config.train
    unit = run.max_length if run.config.data.packing else longest(run, data)
    # A sample of several texts may be longer than a micro-batch, and then has one of its own.
    return max(unit, min(train.micro_batch * run.max_length, train.micro_batch * train.accumulation * unit))


def source_of(run: Run, data: Prepared, parts: Sequence[Part], objective: Whole) -> Source:
    """Where the steps come from."""
    config = run.config
    if config.data.streaming:
        groups = stream(config.data, encoding_for(run, parts[0]), seed=config.seed)
        return Streamed(groups, per_step=run.per_step, vary=objective.vary, seed=config.seed)
    return Shuffled(
        data.train,
        seed=config.seed,
        per_step=run.per_step,
        pack_length=run.max_length if config.data.packing else None,
        shuffle=config.data.shuffle,
        vary=objective.vary,
        order=_order(config, data, parts),
        shares=data.measures[:, 0] if config.data.order == "weighted" else None,
    )


def _order(config: RunConfig, data: Prepared, parts: Sequence[Part]) -> Callable[[int], NDArray[np.int64]] | None:
    """The samples of an epoch by what is known of them; None leaves them in random order.

    Raises:
        DataError: rows without the column that says how difficult they are, or no row with one that says its weight.
    """
    kind, seed = config.data.order, config.seed
    if isinstance(data.train, Kinds):
        sizes = [len(mine) for mine in data.train.sets]
        shares = [size if part.share is None else part.share for size, part in zip(sizes, parts, strict=True)]
        return lambda epoch: order.blended(sizes, shares, seed, epoch)
    if kind == "random":
        return None
    if kind == "weighted":
        weights_N = data.measures[:, 0].astype(np.float64)
        if (weights_N == 1).all():
            raise DataError(
                "no row says how much it weighs",
                where="--order weighted",
                fix="Give rows a number in a column weight, or leave --order out",
                code="no_weight",
            )
        return lambda epoch: order.weighted(weights_N, seed, epoch)
    hardness_N = data.train.lengths if kind == "short_first" else data.measures[:, 1]
    unknown = int(np.isnan(hardness_N).sum())
    if unknown:
        raise DataError(
            f"{unknown} rows do not say how difficult they are",
            where="--order easy_first",
            fix="Give every row a number in a column difficulty, or use --order short_first",
            code="no_difficulty",
        )
    epochs = config.data.curriculum_epochs
    return lambda epoch: order.easy_first(hardness_N.astype(np.float64), seed, epoch, epochs)


def judged(groups: Groups | None, parts: Sequence[Part], seed: int) -> Groups | None:
    """What the model is judged on: the same in every evaluation."""
    if groups is None:
        return None
    sets = groups.sets if isinstance(groups, Kinds) else (groups,)
    varied = [
        mine if part.objective.vary is None else Varied(mine, part.objective.vary, seed)
        for mine, part in zip(sets, parts, strict=True)
    ]
    return Kinds(varied) if isinstance(groups, Kinds) else varied[0]
