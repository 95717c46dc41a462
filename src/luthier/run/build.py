"""The builds of a run: objectives, model, and the trainer around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from luthier.base.config import to_yaml
from luthier.data.dataset import Prepared
from luthier.data.tokens import Groups, Kinds
from luthier.engine.checkpoint import Checkpoints
from luthier.engine.optim import Optimizer
from luthier.engine.trainer import Data, Settings, Trainer
from luthier.engine.watcher import Watcher
from luthier.model import ability, lowbit, methods, sharding, shared
from luthier.model.config import Lora
from luthier.model.layer import Keep
from luthier.model.load import Model, arithmetic_dtype
from luthier.model.noise import Noise
from luthier.model.turns import turns_of
from luthier.objectives.config import Multi, Pretrain, Sft
from luthier.objectives.registry import parts_of
from luthier.objectives.setting import Part, Setting, Whole
from luthier.run.config import RunConfig, alone
from luthier.run.data import encoding_for, fullest, judged, longest, source_of
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


def build_parts(run: Run, tokenizer: PreTrainedTokenizerFast) -> tuple[Part, ...]:
    """The objectives for this data and model.  Processes take turns: one indexes the files, the others reuse."""
    setting = Setting(tokenizer, run.config.model, run.config.data, run.max_length, run.mesh)
    with run.mesh.leader_first():
        return parts_of(run.config.objective, setting)


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
    return general_sets(run, encoding_for(run, parts[0]))


def build_trainer(
    run: Run,
    data: Prepared,
    model: Model,
    parts: Sequence[Part],
    objective: Whole,
    watcher: Watcher,
    general: Mapping[str, Groups],
    keep: Keep,
) -> Trainer:
    """The trainer of a run, at step 0."""
    config = run.config
    source = source_of(run, data, parts, objective)
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
        keep=keep,
    )
    return Trainer(
        model,
        retained(run, model, objective, turns, general),
        Optimizer(model.trained(), config.optim, lambda name: _rate(name, model, config), tied=model.tied),
        Data(
            source=source,
            share=run.share(config.train.micro_batch, model),
            validation=judged(data.validation, parts, config.seed),
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


def choose_keep(run: Run, model: Model, objective: Whole, data: Prepared) -> Choice:
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


def describe(run: Run, data: Prepared, model: Model, trainer: Trainer, predicted: int | None) -> RunPlan:
    """What is about to be trained, in steps that are to take `predicted` bytes at most, where that was found out."""
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
        predicted_gib=predicted / 2**30 if predicted is not None else None,
    )
