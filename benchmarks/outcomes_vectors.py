"""What pretraining and contrastive training reach, each by one command, with seed, time and peak memory.

    python benchmarks/outcomes_vectors.py retrieval --model PATH/all-MiniLM-L6-v2 --set xquad-zh
    python benchmarks/outcomes_vectors.py retrieval --model PATH/all-MiniLM-L6-v2 --set xquad-en \
        --rates 1e-5 3e-5 --negatives 2 --shares 0.5 1
    python benchmarks/outcomes_vectors.py mlm
    python benchmarks/outcomes_vectors.py t5

`retrieval` trains on the questions of half the documents and asks those of the other half, over all documents, before
and after.  With several `--rates` or `--shares` (how far to go from the untuned weights to the tuned), the questions of
a quarter of the first half are kept from training and choose; the other half is still asked once.

`mlm` and `t5` pretrain a small model from nothing on bilingual-lm, and run transformers' own model over the
same batches, padded, with torch's own AdamW: the losses must be the same, step by step.

Data is that of $LUTHIER_TEST_DATA (default ../shared/data).  Times are processor seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from luthier.base.console import Console
from luthier.data.batch import collate
from luthier.data.dataset import encoding_of, prepare
from luthier.data.loader import Cursor, Shuffled
from luthier.model.config import Full, ModelConfig, Shape
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives import config as kinds
from luthier.objectives.registry import build
from luthier.objectives.setting import Setting
from luthier.run.config import RunConfig
from luthier.run.init import make_untrained
from luthier.run.resolve import resolve
from luthier.run.train import train
from luthier.score.ranking import retrieval

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
CPU = torch.device("cpu")
SEED = 42
TEXTS = (f"{DATA}/bilingual-lm/zh_train.jsonl#2000", f"{DATA}/bilingual-lm/en_train.jsonl#150")


def settings(model: Path, objective: kinds.Objective, datasets: tuple[str, ...], out: Path, **more: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "objective": objective.model_dump(),
            "model": {"path": str(model), "dtype": more.pop("dtype", "float32")},
            "method": Full().model_dump(),
            "data": {"datasets": datasets, "cache_dir": str(out / "cache"), **more.pop("data", {})},
            "log": {"every": 1, "report_to": ["none"]},
            "output_dir": str(out / "runs"),
            "seed": SEED,
            **more,
        }
    )


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints/LATEST").read_text().strip()


def rows(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def vectors(folder: Path, texts: list[str]) -> Tensor:
    """Unit vectors of texts, by the mean of their hidden states."""
    config = ModelConfig(path=str(folder))
    setting = Setting(load_tokenizer(config), config, settings_of_data(), 256)
    objective = build(kinds.Embed(loss="infonce"), setting)
    model = load_model(config, CPU, tokenizer=setting.tokenizer, trained=False, head=objective.head)
    found: list[Tensor] = []
    from luthier.base.records import Similar, Where

    for start in range(0, len(texts), 32):
        part = texts[start : start + 32]
        # two texts in each record, which are embedded alike
        pairs = zip(part[::2], [*part[1::2], part[-1]], strict=False)
        records = [Similar(one, (two,), (), Where("", 1)) for one, two in pairs]
        groups = [group for record in records if (group := objective.encode(record)) is not None]
        batch = collate(groups, range(len(groups)))
        with torch.no_grad():
            embedded: Tensor = objective.embed(model, batch)  # pyright: ignore[reportAttributeAccessIssue]
        found.append(F.normalize(embedded, dim=1)[: len(part)])
    return torch.cat(found)


def settings_of_data() -> Any:
    from luthier.data.config import DataConfig

    return DataConfig(datasets=("none",), overlong="truncate")


def found(folder: Path, queries: dict[str, str], corpus: dict[str, str], judged: dict[str, dict[str, float]]) -> Any:
    cosines = vectors(folder, list(queries.values())) @ vectors(folder, list(corpus.values())).T
    names = list(corpus)
    run = {query: dict(zip(names, row.tolist(), strict=True)) for query, row in zip(queries, cosines, strict=True)}
    return retrieval(run, judged, (10,))


@dataclass(frozen=True)
class Tuning:
    """How an embedder is tuned for one set."""

    rates: tuple[float, ...]
    shares: tuple[float, ...]
    epochs: float
    negatives: int
    temperature: float
    dtype: str


@dataclass(frozen=True)
class Questions:
    """A set in BEIR's layout; each question has one answer."""

    corpus: dict[str, str]
    texts: dict[str, str]
    answers: dict[str, str]

    @classmethod
    def read(cls, folder: Path) -> Questions:
        corpus = {row["_id"]: row["text"] for row in rows(folder / "corpus.jsonl")}
        texts = {row["_id"]: row["text"] for row in rows(folder / "queries.jsonl")}
        answers = dict(line.split("\t")[:2] for line in (folder / "qrels.tsv").read_text().splitlines()[1:])
        return cls(corpus, texts, answers)

    def of(self, documents: set[str]) -> dict[str, str]:
        """The questions that these documents answer."""
        return {query: self.texts[query] for query, document in self.answers.items() if document in documents}

    def judge(self, model: Path, documents: set[str]) -> Any:
        """How well the questions of some documents find them among all."""
        asked = self.of(documents)
        return found(model, asked, self.corpus, {query: {self.answers[query]: 1.0} for query in asked})


def hard_negatives(model: Path, data: Questions, documents: set[str], count: int) -> dict[str, list[str]]:
    """For each question of some documents, those others of them that the model takes for nearest."""
    asked, named = data.of(documents), sorted(documents)
    texts = vectors(model, [data.corpus[name] for name in named])
    order = (vectors(model, list(asked.values())) @ texts.T).argsort(1, descending=True).tolist()
    return {
        query: [data.corpus[named[at]] for at in near if named[at] != data.answers[query]][:count]
        for query, near in zip(asked, order, strict=True)
    }


def between(untuned: Path, tuned: Path, share: float, folder: Path) -> None:
    """Write an encoder with `share` of the way from its untuned weights to the tuned ones (WiSE-FT)."""
    shutil.copytree(tuned, folder)
    start, end = (load_file(part / "model.safetensors") for part in (untuned, tuned))
    between = {name: torch.lerp(start[name].float(), weight.float(), share) for name, weight in end.items()}
    save_file(between, folder / "model.safetensors", {"format": "pt"})


def search(model: Path, name: str, tuning: Tuning, out: Path) -> dict[str, Any]:
    data = Questions.read(DATA / "retrieval-derived" / name)
    names = list(data.corpus)
    learned, asked = set(names[::2]), set(names[1::2])
    choice = len(tuning.rates) * len(tuning.shares) > 1
    choosing = set(names[::8]) if choice else set[str]()
    learned -= choosing
    bad = hard_negatives(model, data, learned, tuning.negatives) if tuning.negatives else {}
    pairs = out / "pairs.jsonl"
    with pairs.open("w", encoding="utf-8") as file:
        for query, text in data.of(learned).items():
            row = {"query": text, "pos": [data.corpus[data.answers[query]]], "neg": bad.get(query, [])}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    start = time.process_time()
    models: dict[tuple[float, float], Path] = {}
    for rate in tuning.rates:
        config = settings(
            model,
            kinds.Embed(loss="infonce", temperature=tuning.temperature),
            (str(pairs),),
            out / f"{rate:g}",
            data={"max_length": 256},
            train={"epochs": tuning.epochs, "micro_batch": 32, "accumulation": 1},
            optim={"learning_rate": rate, "warmup_ratio": 0.1},
            dtype=tuning.dtype,
        )
        tuned = newest(train(config, Console(quiet=True)))
        for share in tuning.shares:
            models[rate, share] = tuned if share == 1 else out / f"{rate:g}-{share:g}"
            if share != 1:
                between(model, tuned, share, models[rate, share])
    spent = time.process_time() - start
    chosen_by = {key: data.judge(made, choosing)["ndcg@10"] for key, made in models.items()} if choice else {}
    rate, share = max(chosen_by, key=lambda key: chosen_by[key]) if choice else next(iter(models))
    return {
        "set": name,
        **asdict(tuning),
        "chosen": {"rate": rate, "share": share},
        "chosen_by": {
            **{f"rate {rate:g}, share {share:g}": value for (rate, share), value in chosen_by.items()},
            **({"untuned": data.judge(model, choosing)["ndcg@10"]} if choice else {}),
        },
        "questions": len(data.of(asked)),
        "before": data.judge(model, asked),
        "after": data.judge(models[rate, share], asked),
        "train_seconds": spent,
    }


def pretrain(kind: str, steps: int, out: Path) -> dict[str, Any]:
    shape = Shape(
        architecture="bert" if kind == "mlm" else "t5", vocab_size=6000, hidden_size=128, intermediate_size=384,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    texts = {"datasets": (f"{DATA}/bilingual-lm/zh_train.jsonl#1000", f"{DATA}/bilingual-lm/en_train.jsonl#60")}
    model = out / "base"
    from luthier.data.config import DataConfig

    make_untrained(DataConfig(**texts, cache_dir=str(out / "cache")), shape, model, SEED, Console(quiet=True))
    without_dropout(model)
    objective: kinds.Objective = kinds.Mlm() if kind == "mlm" else kinds.SpanCorruption()
    config = settings(
        model, objective, TEXTS, out, data={"max_length": 128},
        train={"max_steps": steps, "micro_batch": 8, "accumulation": 2},
        optim={"learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0},
    )  # fmt: skip
    start = time.process_time()
    run = train(config, Console(quiet=True))
    spent = time.process_time() - start
    ours = [row["loss"] for row in rows(run / "metrics.jsonl") if "loss" in row]
    start = time.process_time()
    theirs = list(reference(config, model, steps))
    return {
        "objective": kind,
        "steps": steps,
        "first": [ours[0], theirs[0]],
        "last": [ours[steps - 1], theirs[-1]],
        "largest_difference": max(abs(a - b) for a, b in zip(ours, theirs, strict=False)),
        "seconds": spent,
        "seconds_of_reference": time.process_time() - start,
    }


def without_dropout(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout_rate")
    config.update({name: 0.0 for name in names if name in config})
    (model / "config.json").write_text(json.dumps(config))


def reference(config: RunConfig, folder: Path, steps: int) -> Iterator[float]:
    """Losses of transformers' own model over the same steps, each one padded batch."""
    import transformers

    resolved = resolve(config)
    setting = Setting(load_tokenizer(resolved.model), resolved.model, resolved.data, resolved.data.max_length)
    objective = build(resolved.objective, setting)
    encoding = encoding_of(
        resolved.data, objective.encode, objective.key, objective.stop_ids, resolved.data.max_length, objective.task
    )
    data = prepare(resolved.data, encoding, template_note=None, seed=SEED, progress=lambda count: None)
    source = Shuffled(data.train, seed=SEED, per_step=16, vary=objective.vary)
    masked = isinstance(resolved.objective, kinds.Mlm)
    auto = transformers.AutoModelForMaskedLM if masked else transformers.AutoModelForSeq2SeqLM
    network: Any = auto.from_pretrained(folder)
    network.train()
    betas = resolved.optim.beta1, resolved.optim.beta2
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, betas=betas, eps=resolved.optim.eps)
    for _, (_, read) in zip(range(steps), source.draws(Cursor()), strict=False):
        groups = read()
        sequences = [group.sequences[0] for group in groups]
        inputs = padded([torch.from_numpy(tokens.ids) for tokens in sequences], 0)
        mask = padded([torch.ones(len(tokens)) for tokens in sequences], 0)
        if masked:
            labels = padded(
                [torch.where(torch.from_numpy(t.weights) > 0, torch.from_numpy(t.targets), -100) for t in sequences],
                -100,
            )
        else:
            labels = padded([torch.from_numpy(group.sequences[1].ids[1:]) for group in groups], -100)
        loss = network(input_ids=inputs, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), resolved.optim.max_grad_norm or float("inf"))
        optimizer.step()
        yield loss.item()


def padded(parts: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([part.long() for part in parts], batch_first=True, padding_value=value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["retrieval", "mlm", "t5"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--set", default="xquad-en")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-5])
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0], help="of the way to the tuned weights")
    parser.add_argument("--negatives", type=int, default=0, help="hard negatives of each question")
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "retrieval":
            tuning = Tuning(
                tuple(given.rates), tuple(given.shares), given.epochs, given.negatives, given.temperature, given.dtype
            )
            result = search(given.model, given.set, tuning, Path(folder))
        else:
            result = pretrain(given.what, given.steps, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**result, "seed": SEED, "peak_gib": round(peak, 2)}, indent=1))


if __name__ == "__main__":
    main()
