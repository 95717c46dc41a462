"""The builds of a run: data, model, and the trainer around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.config import to_yaml
from luthier.base.errors import ConfigError, DataError
from luthier.base.rundir import write_atomic
from luthier.data import order, preview, report
from luthier.data.dataset import Prepared, encoding_of, prepare, stream, together
from luthier.data.encode import Encoding
from luthier.data.joined import Joined
from luthier.data.loader import Shuffled, Source, Streamed, Varied
from luthier.data.tokens import Groups, Kinds
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.optim import Optimizer
from luthier.engine.trainer import Data, Settings, Trainer
from luthier.engine.watcher import Watcher
from luthier.model import ability, lowbit, methods, sharding, shared
from luthier.model.config import Lora
from luthier.model.load import Model, arithmetic_dtype, context_length
from luthier.model.method import virtual_tokens
from luthier.model.noise import Noise
from luthier.model.turns import turns_of
from luthier.objectives.config import Multi, Pretrain, Sft
from luthier.objectives.registry import parts_of
from luthier.objectives.setting import Part, Setting, Whole
from luthier.run.config import RunConfig, alone
from luthier.run.environment import describe_device
from luthier.run.parts import Run
from luthier.run.plan import RunPlan
from luthier.run.recompute import (
    KEPT,
    Choice,
    Trial,
    choose_on_gpu,
    keeps_of,
    random_trial,
    repeated_trial,
    state_bytes,
)
from luthier.run.resume import model_fingerprint
from luthier.run.retain import general_sets, retained
from luthier.run.rows import PREVIEWED

PREVIEW_ROWS = 20
"""Samples shown in preview.html."""


def build_parts(run: Run, tokenizer: PreTrainedTokenizerFast) -> tuple[Part, ...]:
    """The objectives for this data and model.  Processes take turns: one indexes the files, the others reuse."""
    setting = Setting(tokenizer, run.config.model, run.config.data, run.max_length, run.mesh)
    with run.mesh.leader_first():
        return parts_of(run.config.objective, setting)


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
            encoding, note = _encoding(run, part), part.objective.note
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


def _encoding(run: Run, part: Part) -> Encoding:
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


def build_model(run: Run, tokenizer: PreTrainedTokenizerFast, parts: Sequence[Part]) -> tuple[Model, str]:
    """The model with its heads and its method applied, and the fingerprint of the model it started from."""
    config, device, settings = run.config, run.mesh.device, run.config.model
    sharded = run.split
    if sharded:
        # All weights go no further than main memory; of them, each process's part goes to its device.
        dtype = str(arithmetic_dtype(settings.dtype, device)).removeprefix("torch.")
        device, settings = torch.device("cpu"), settings.model_copy(update={"dtype": dtype})
    torch.manual_seed(config.seed)  # a head that is new is drawn at random
    tasks = {part.name: part.objective.head for part in parts}
    model = shared.load_shared(settings, device, tokenizer=tokenizer, tasks=tasks)
    if model.note:
        run.console.say(model.note)
    packed = model.packed
    fingerprint = model_fingerprint(model)
    torch.manual_seed(config.seed)
    methods.apply(model, config.method, settings.adapters, widen=not sharded)
    if packed and not model.packed:
        run.console.say(f"Sequences are padded, not packed: {config.method.type} puts something before each of them")
    if config.train.neftune_alpha:
        Noise(model, config.train.neftune_alpha, config.seed)
    if sharded:
        sharding.shard(model, run.mesh.device)
        run.console.say(f"Each of the {run.mesh.world} processes holds a part of the weights (FSDP2)")
    elif config.train.shard == "full":
        run.console.warn("--fsdp full_shard changes nothing with one process; set NPROC_PER_NODE=<devices>")
    if run.mesh.device.type == "cuda" and config.model.layers != "plain":
        kernels = ability.kernels(run.mesh.device)
        reason = kernels if isinstance(kernels, str) else model.by_hand(kernels)
        if reason:
            run.console.say(f"transformers runs the layers, which is slower: {reason}")
    return model, fingerprint


def build_general(run: Run, parts: Sequence[Part]) -> dict[str, Groups]:
    """The sets that tell what was forgotten, by name."""
    return general_sets(run, _encoding(run, parts[0]))


def build_trainer(
    run: Run,
    data: Prepared,
    model: Model,
    parts: Sequence[Part],
    objective: Whole,
    watcher: Watcher,
    general: Mapping[str, Groups] | None = None,
) -> Trainer:
    """The trainer of a run, at step 0."""
    config = run.config
    source = source_of(run, data, parts, objective)
    choice = _keep(run, model, objective, data)
    total_steps = config.train.max_steps or source.steps(config.train.epochs) or 0
    turns = turns_of(model, config.method, total=total_steps, seed=config.seed)
    settings = Settings(
        train=config.train,
        optim=config.optim,
        eval=config.eval,
        save=config.save,
        log_every=config.log.every,
        seed=config.seed,
        loader_workers=config.data.loader_workers,
        total_steps=total_steps,
        keep=choice.keep,
        predicted=choice.predicted,
    )
    return Trainer(
        model,
        retained(run, model, objective, turns, general or {}),
        Optimizer(model.trained(), config.optim, lambda name: _rate(name, model, config), tied=model.tied),
        Data(
            source=source,
            share=run.share(config.train.micro_batch, model),
            validation=_judged(data.validation, parts, config.seed),
            validation_share=run.share(config.eval.micro_batch or config.train.micro_batch, model),
            per_epoch=None if config.data.streaming else len(data.train),
        ),
        settings,
        Checkpoints(run.directory.path / "checkpoints", config.save.total_limit),
        watcher,
        run.mesh,
        lambda folder, weights: _write_artefact(model, parts, config, folder, weights),
        turns,
    )


def _keep(run: Run, model: Model, objective: Whole, data: Prepared) -> Choice:
    """What each layer keeps for its backward pass: what was asked for, or on a GPU what fits."""
    asked = run.config.train.gradient_checkpointing
    if not run.config.method.supports.checkpointing:
        return Choice("most")
    if asked == "some":
        return Choice("some")
    if asked:
        return Choice("input")
    if run.mesh.device.type != "cuda":
        return Choice("most")
    if model.sharded is not None:
        return Choice("input" if asked is None else "most")
    config = run.config
    choice = choose_on_gpu(
        model,
        objective,
        run.mesh,
        capacity=fullest(run, data),
        trials=trials(run, model, objective, data),
        later=state_bytes(model, config.optim, average=config.train.ema_decay is not None),
        keeps=keeps_of(model) if asked is None else [keep for keep in keeps_of(model) if keep in ("all", "most")],
    )
    if choice.predicted is not None and choice.available is not None:
        run.console.say(
            f"{KEPT[choice.keep]}: a step is to take {choice.predicted / 2**30:.1f} of "
            f"{choice.available / 2**30:.1f} GiB"
        )
    return choice


def room(config: RunConfig, tokenizer: PreTrainedTokenizerFast) -> int:
    """The longest sequence in tokens that the model holds behind the method's virtual tokens.

    Raises:
        ConfigError: they leave none.
    """
    most, taken = context_length(config.model, tokenizer), virtual_tokens(config.method)
    if taken and taken >= most:
        raise ConfigError(
            f"{taken} virtual tokens leave no room for a text in a model of {most} tokens",
            where="--num_virtual_tokens",
            fix="Use fewer; 20 are usual",
        )
    return most - taken


def longest(run: Run, data: Prepared) -> int:
    """Tokens of the longest sample; of a streamed run, of the longest there may be."""
    return run.max_length if run.config.data.streaming else int(data.train.lengths.max())


def fullest(run: Run, data: Prepared) -> int:
    """Tokens of the fullest micro-batch that a step can have."""
    train = run.config.train
    unit = run.max_length if run.config.data.packing else longest(run, data)
    return min(train.micro_batch * run.max_length, train.micro_batch * train.accumulation * unit)


def trials(run: Run, model: Model, objective: Whole, data: Prepared) -> list[Trial]:
    """Micro-batches of the longest sample of each kind; where next tokens are learned, of tokens that all are."""
    most = longest(run, data)
    if isinstance(run.config.objective, Pretrain | Sft):
        return [lambda tokens: random_trial(tokens, most, model.vocabulary)]
    sets = data.train.sets if isinstance(data.train, Kinds) else (data.train,)
    found = [replace(mine[int(mine.lengths.argmax())], kind=kind) for kind, mine in enumerate(sets)]
    rng = np.random.default_rng(run.config.seed)
    seen = [group if objective.vary is None else objective.vary(group, rng) for group in found]
    return [partial(repeated_trial, like=group) for group in seen]


def source_of(run: Run, data: Prepared, parts: Sequence[Part], objective: Whole) -> Source:
    """Where the steps come from."""
    config = run.config
    if config.data.streaming:
        groups = stream(config.data, _encoding(run, parts[0]), seed=config.seed)
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


def _judged(groups: Groups | None, parts: Sequence[Part], seed: int) -> Groups | None:
    """What the model is judged on: the same in every evaluation."""
    if groups is None:
        return None
    sets = groups.sets if isinstance(groups, Kinds) else (groups,)
    varied = [
        mine if part.objective.vary is None else Varied(mine, part.objective.vary, seed)
        for mine, part in zip(sets, parts, strict=True)
    ]
    return Kinds(varied) if isinstance(groups, Kinds) else varied[0]


def _write_artefact(
    model: Model, parts: Sequence[Part], config: RunConfig, folder: Path, weights: Callable[[Tensor], Tensor]
) -> None:
    names = tuple(part.name for part in parts if part.name)
    shared.save(model, folder, weights, names)
    for part in parts:
        place = folder / shared.HEADS / part.name if part.name else folder
        for name, text in part.objective.files(model.under(part.name)).items():
            file = place / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        (place / "config.yaml").write_text(to_yaml(alone(config, part.name)), encoding="utf-8")
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")


def _rate(name: str, model: Model, config: RunConfig) -> float:
    """Learning rate of one parameter relative to the run's: LoRA+ for B matrices, and its depth's decay."""
    method, decay = config.method, config.optim.layer_decay
    ratio = method.plus_ratio if isinstance(method, Lora) and methods.is_lora_b(name) else None
    layers, layer = methods.num_layers(model), methods.layer_of(name)
    if layer is None:
        layer = -1 if "embed" in name else layers
    return (ratio or 1.0) * decay ** (layers - layer)


def named(config: RunConfig) -> str:
    """What is learned, in a few words."""
    if not isinstance(config.objective, Multi):
        return config.objective.type
    tasks = {name: task.objective for name, task in config.objective.tasks.items()}
    return "multi: " + ", ".join(f"{name} ({learned.type})" for name, learned in tasks.items() if learned)


def describe(run: Run, data: Prepared, model: Model, trainer: Trainer) -> RunPlan:
    """What is about to be trained."""
    streaming, steps = run.config.data.streaming, trainer.settings.total_steps
    an_epoch = trainer.data.source.steps(1.0)
    return RunPlan(
        model=run.config.model.path,
        parameters=lowbit.count_weights(model.network)
        + sum(weight.numel() for name, weight in model.weights().items() if name.startswith("heads.")),
        trained_parameters=sum(weight.numel() for weight in model.trained().values()),
        method=run.config.method.type,
        objective=named(run.config),
        samples=0 if streaming else len(data.train),
        tokens_per_epoch=None if streaming else int(data.train.lengths.sum()),
        steps=steps,
        epochs=steps / an_epoch if an_epoch else None,
        global_batch=run.per_step,
        device=describe_device(run.mesh.device),
        world_size=run.mesh.world,
        run_dir=str(run.directory.path),
        predicted_gib=predicted / 2**30 if (predicted := trainer.settings.predicted) is not None else None,
    )
