"""What pretraining and contrastive training reach, each by one command, with seed, time and peak memory.

    python benchmarks/outcomes_vectors.py retrieval --model PATH/all-MiniLM-L6-v2 --set xquad-zh
    python benchmarks/outcomes_vectors.py retrieval --model PATH/all-MiniLM-L6-v2 --set xquad-en \
        --epochs 3 --negatives 2 --rates 1e-5 2e-5 5e-5 --shares 0.5 1
    python benchmarks/outcomes_vectors.py mlm
    python benchmarks/outcomes_vectors.py t5

`retrieval` trains on the questions of half the documents and asks those of the other half, over all documents, before
and after, with the interval of the difference (95 %, questions drawn again with replacement).  With several `--rates`
or `--shares` (how far to go from the untuned weights to the tuned), the first half chooses: each of its `--folds` is
asked of a model that learned from the others.  The other half is asked once, of one that learned from the whole first.

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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.base.console import Console
from luthier.data.config import DataConfig
from luthier.data.dataset import encoding_of, prepare
from luthier.data.loader import Cursor, Shuffled
from luthier.generate.embed import embed
from luthier.model.config import Full, ModelConfig, Shape
from luthier.model.heads import Head
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives import config as kinds
from luthier.objectives.registry import build
from luthier.objectives.setting import Setting
from luthier.run.config import RunConfig
from luthier.run.init import make_untrained
from luthier.run.resolve import resolve
from luthier.run.soup import average
from luthier.run.train import train

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
SEED = 42
LENGTH = 256
"""What all-MiniLM-L6-v2 reads of a text, in tokens."""
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


@dataclass(frozen=True)
class Tuning:
    """How an embedder is tuned for one set."""

    rates: tuple[float, ...]
    shares: tuple[float, ...]
    folds: int
    epochs: float
    negatives: int
    temperature: float
    dtype: str
    device: str
    seed: int


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

    def of(self, documents: Sequence[str]) -> dict[str, str]:
        """The questions that these documents answer."""
        wanted = set(documents)
        return {query: self.texts[query] for query, document in self.answers.items() if document in wanted}

    def near(self, model: Path, documents: Sequence[str], among: Sequence[str], device: str) -> dict[str, list[str]]:
        """For each question of some documents, those of `among`, the nearest first."""
        asked = self.of(documents)
        texts = [*asked.values(), *(self.corpus[name] for name in among)]
        found = vectors(model, texts, device)
        order = np.argsort(-(found[: len(asked)] @ found[len(asked) :].T), axis=1, kind="stable").tolist()
        return {query: [among[place] for place in places] for query, places in zip(asked, order, strict=True)}

    def judge(self, model: Path, documents: Sequence[str], device: str) -> dict[str, NDArray[np.float64]]:
        """How well each question of some documents finds its own among all."""
        found = self.near(model, documents, list(self.corpus), device)
        place = np.array([1 + names.index(self.answers[query]) for query, names in found.items()])
        within = place <= 10
        return {"ndcg@10": within / np.log2(place + 1), "recall@10": within.astype(float), "mrr@10": within / place}


def vectors(folder: Path, texts: list[str], device: str) -> NDArray[np.float32]:
    """Unit vectors of texts, by the mean of their hidden states."""
    config = ModelConfig(path=str(folder))
    tokenizer = load_tokenizer(config)
    plain = Setting(tokenizer, config, DataConfig(datasets=("none",), overlong="truncate"), LENGTH).plain
    model = load_model(config, torch.device(device), tokenizer=tokenizer, trained=False, head=Head("none"))
    return embed(model, [plain.words(text).ids for text in texts], "mean")


def tune(model: Path, data: Questions, documents: Sequence[str], rate: float, tuning: Tuning, out: Path) -> Path:
    """Teach the model the questions of some documents; hard negatives are those it takes for nearest among them."""
    out.mkdir(parents=True)
    near = data.near(model, documents, documents, tuning.device) if tuning.negatives else {}
    with (out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for query, text in data.of(documents).items():
            wrong = [name for name in near.get(query, []) if name != data.answers[query]][: tuning.negatives]
            row = {
                "query": text,
                "pos": [data.corpus[data.answers[query]]],
                "neg": [data.corpus[name] for name in wrong],
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    config = settings(
        model,
        kinds.Embed(loss="infonce", temperature=tuning.temperature),
        (str(out / "pairs.jsonl"),),
        out,
        data={"max_length": LENGTH},
        train={"epochs": tuning.epochs, "micro_batch": 32, "accumulation": 1},
        optim={"learning_rate": rate, "warmup_ratio": 0.1},
        dtype=tuning.dtype,
        device=tuning.device,
        seed=tuning.seed,
    )
    return newest(train(config, Console(quiet=True)))


def between(model: Path, tuned: Path, share: float, folder: Path) -> Path:
    """The model that is `share` of the way from the untuned weights to the tuned ones (WiSE-FT)."""
    if share == 1:
        return tuned
    average(ModelConfig(path=str(model)), [str(tuned)], [1.0], share, folder)
    return folder


def choose(
    model: Path, data: Questions, learned: list[str], tuning: Tuning, out: Path
) -> dict[tuple[float, float], float]:
    """nDCG@10 of each rate and share over the learned half, every question asked of a model that never saw its fold."""
    found: dict[tuple[float, float], list[NDArray[np.float64]]] = {}
    for fold in range(tuning.folds):
        held = learned[fold :: tuning.folds]
        rest = [name for name in learned if name not in held]
        found.setdefault((0.0, 0.0), []).append(data.judge(model, held, tuning.device)["ndcg@10"])
        for rate in tuning.rates:
            here = out / f"{fold}-{rate:g}"
            tuned = tune(model, data, rest, rate, tuning, here)
            for share in tuning.shares:
                made = between(model, tuned, share, here / f"share-{share:g}")
                found.setdefault((rate, share), []).append(data.judge(made, held, tuning.device)["ndcg@10"])
            shutil.rmtree(here)
    return {key: float(np.concatenate(parts).mean()) for key, parts in found.items()}


def search(model: Path, name: str, tuning: Tuning, out: Path) -> dict[str, Any]:
    data = Questions.read(DATA / "retrieval-derived" / name)
    names = list(data.corpus)
    learned, asked = names[::2], names[1::2]
    rate, share, chosen_by = tuning.rates[0], tuning.shares[0], dict[tuple[float, float], float]()
    if len(tuning.rates) * len(tuning.shares) > 1:
        chosen_by = choose(model, data, learned, tuning, out)
        rate, share = max((key for key in chosen_by if any(key)), key=lambda key: chosen_by[key])
    start = time.process_time()
    made = between(model, tune(model, data, learned, rate, tuning, out / "whole"), share, out / "between")
    spent = time.process_time() - start
    before, after = (data.judge(path, asked, tuning.device) for path in (model, made))
    return {
        "set": name,
        **asdict(tuning),
        "chosen": {"rate": rate, "share": share},
        "chosen_by": {
            f"rate {rate:g}, share {share:g}" if rate else "untuned": value
            for (rate, share), value in chosen_by.items()
        },
        "questions": len(data.of(asked)),
        "before": {metric: float(values.mean()) for metric, values in before.items()},
        "after": {metric: float(values.mean()) for metric, values in after.items()},
        "difference": {metric: interval(after[metric] - before[metric]) for metric in before},
        "train_seconds": spent,
    }


def interval(changes_N: NDArray[np.float64]) -> dict[str, float]:
    """The mean change, its middle 95 % over questions drawn again with replacement, and how many changed either way."""
    drawn = np.random.default_rng(SEED).integers(len(changes_N), size=(10_000, len(changes_N)))
    low, high = np.percentile(changes_N[drawn].mean(1), [2.5, 97.5])
    better, worse = (int((sign * changes_N > 1e-9).sum()) for sign in (1, -1))
    return {"mean": float(changes_N.mean()), "low": low, "high": high, "better": better, "worse": worse}


def pretrain(kind: str, steps: int, out: Path) -> dict[str, Any]:
    shape = Shape(
        architecture="bert" if kind == "mlm" else "t5", vocab_size=6000, hidden_size=128, intermediate_size=384,
        num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    texts = {"datasets": (f"{DATA}/bilingual-lm/zh_train.jsonl#1000", f"{DATA}/bilingual-lm/en_train.jsonl#60")}
    model = out / "base"
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
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=SEED)
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
                tuple(given.rates), tuple(given.shares), given.folds, given.epochs, given.negatives,
                given.temperature, given.dtype, given.device, given.seed,
            )  # fmt: skip
            result = search(given.model, given.set, tuning, Path(folder))
        else:
            result = pretrain(given.what, given.steps, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seed": SEED, **result, "peak_gib": round(peak, 2)}, indent=1))


if __name__ == "__main__":
    main()
