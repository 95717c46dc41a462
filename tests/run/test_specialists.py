"""`luthier eval` on models that were trained for one task: they are judged as their own runs judged them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoders import save_encoder

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.cli.app import main
from luthier.evaluate.config import EvalConfig
from luthier.model.config import ModelConfig
from luthier.model.heads import CLASSES
from luthier.run.evaluation import Evaluated, evaluate
from luthier.run.result import find
from luthier.run.soup import average
from luthier.run.specialist import skill_of

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

WORDS = [
    "violin",
    "maker",
    "planes",
    "the",
    "top",
    "until",
    "it",
    "rings",
    "a",
    "small",
    "model",
    "was",
    "made",
    "by",
    "people",
]
TAGS = ("O", "B-PER", "I-PER", "B-LOC")


def sentences(count: int, seed: int = 0) -> list[list[str]]:
    draw = np.random.default_rng(seed)
    return [draw.choice(WORDS, int(draw.integers(2, 12))).tolist() for _ in range(count)]


def rows_for(task: str) -> list[dict[str, Any]]:
    """Rows of very different lengths, so that padding and batches differ."""
    texts = [" ".join(words) for words in sentences(30)]
    if task == "seq_cls":
        return [{"text": text, "label": ("yes", "no", "maybe")[n % 3]} for n, text in enumerate(texts)]
    if task == "several":
        return [{"text": text, "label": [["a"], ["a", "b"], ["c"]][n % 3]} for n, text in enumerate(texts)]
    if task == "number":
        return [{"Input": text, "Reward": len(text) / 10} for text in texts]
    if task == "token_cls":
        return [{"tokens": w, "tags": [TAGS[(len(x) + k) % 4] for k, x in enumerate(w)]} for w in sentences(30)]
    if task == "scored":
        return [{"sentence1": t, "sentence2": texts[-n], "score": n % 5 / 4} for n, t in enumerate(texts)]
    if task == "reranker":
        return [
            {"query": t, "pos": [t.upper()], "neg": [texts[n - 1], texts[n - 2], texts[n - 3]]}
            for n, t in enumerate(texts)
        ]
    return [{"query": text, "pos": [" ".join(reversed(text.split()))]} for text in dict.fromkeys(texts)]


TASKS: dict[str, dict[str, Any]] = {
    "seq_cls": {"objective": "seq_cls"},
    "several": {"objective": "seq_cls"},
    "number": {"objective": "seq_cls", "num_labels": 1},
    "token_cls": {"objective": "token_cls"},
    "scored": {"objective": "embedding", "loss": "cosent"},
    "pairs": {"objective": "embedding", "query_prompt": "violin "},
    "reranker": {"objective": "reranker"},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A run and its rows by task; each is trained once."""
    home = tmp_path_factory.mktemp("runs")
    made: dict[str, tuple[Path, Path]] = {}

    def make(task: str) -> tuple[Path, Path]:
        if task not in made:
            folder = home / task
            base = save_encoder(folder / "base", "bert")
            rows = folder / "rows.jsonl"
            rows.write_text("\n".join(json.dumps(row) for row in rows_for(task)))
            flags = {
                "model": base, "dataset": rows, "val_dataset": rows, "train_type": "full", "num_train_epochs": 2,
                "learning_rate": 1e-3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
                "output_dir": folder / "run", "cache_dir": folder / "cache", "device": "cpu", "max_length": 64,
                "torch_dtype": "float32", **TASKS[task],
            }  # fmt: skip
            words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
            words[words.index("--objective")] = "--objective.type"
            assert main(["train", *words]) == 0
            (run,) = (folder / "run").glob("v*")
            made[task] = run, rows
        return made[task]

    return make


def judged(model: Path, rows: Path, out: Path, **changes: Any) -> Evaluated:
    tree: dict[str, Any] = {
        "model": {"path": str(model), "dtype": "float32"},
        "eval_dataset": (str(rows),),
        "output_dir": str(out),
        "device": "cpu",
        **changes,
    }
    return evaluate(validate(EvalConfig, tree), Console(quiet=True))


def scores(found: Evaluated) -> dict[str, float]:
    return {row.metric: row.score for row in found.measured.scores()}


SAME: dict[str, dict[str, str]] = {
    "seq_cls": {"AverageAccuracy": "eval_accuracy", "macro-f1": "eval_macro_f1"},
    "several": {
        "exact": "eval_accuracy", "f1": "eval_micro_f1", "precision": "eval_micro_precision",
        "macro-f1": "eval_macro_f1",
    },
    "number": {"mse": "eval_mse", "r2": "eval_r2", "spearman": "eval_spearman"},
    "token_cls": {"f1": "eval_f1", "precision": "eval_precision", "recall": "eval_recall", "macro-f1": "eval_macro_f1"},
    "scored": {"pearson": "eval_pearson", "spearman": "eval_spearman"},
    "pairs": {"ndcg@10": "eval_ndcg@10", "mrr@10": "eval_mrr@10", "recall@10": "eval_recall@10"},
    "reranker": {"ndcg@10": "eval_ndcg@10", "mrr@10": "eval_mrr@10", "map": "eval_map"},
}  # fmt: skip


@pytest.mark.parametrize("task", SAME)
def test_a_run_is_judged_as_it_judged_itself_whatever_the_batch(
    task: str, runs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    run, rows = runs(task)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    best = (run / "checkpoints" / "BEST").read_text().strip()
    step = int(best.removeprefix("step-"))
    own = next(line for line in lines if "eval_loss" in line and line["step"] == step)
    found = judged(run, rows, tmp_path / "whole")
    # Scores are rounded to five digits here before they are ranked, so one near-tie among thirty rankings may fall the
    # other way than in the run: by one place, which is half a point of one of them at most.
    within = 0.5 / 30 + 1e-3 if task in ("pairs", "reranker") else 2e-3
    expected = {mine: own[theirs] for mine, theirs in SAME[task].items()}
    assert {name: scores(found)[name] for name in SAME[task]} == pytest.approx(expected, abs=within)
    alone = judged(run, rows, tmp_path / "alone", batch_tokens=1)
    assert scores(alone) == pytest.approx(scores(found), abs=1e-6)
    assert (found.folder / "report.md").is_file() and (found.folder / "report.json").is_file()
    items = [json.loads(x) for x in next((found.folder / "items").glob("*/*.jsonl")).read_text().splitlines()]
    assert len(items) == len(rows.read_text().splitlines())
    drawn = {path.name.split("-")[0] for path in (found.folder / "plots").glob("confusion*.png")}
    assert bool(drawn) == (task in ("seq_cls", "token_cls"))


def test_before_and_after_with_intervals(runs: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    run, rows = runs("scored")
    found = judged(run, rows, tmp_path, compare=str(run.parents[1] / "base"))
    changed = {one.metric: one for one in found.changes}
    assert set(changed) == {"pearson", "spearman"}
    assert changed["pearson"].low <= changed["pearson"].difference <= changed["pearson"].high
    classifier, labels = runs("seq_cls")
    found = judged(classifier, labels, tmp_path, compare=str(classifier))
    assert {(one.metric, one.difference, one.wins, one.losses) for one in found.changes} == {
        ("AverageAccuracy", 0.0, 0, 0), ("macro-f1", 0.0, 0, 0),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="this model makes vectors of texts, and cannot be asked"):
        judged(classifier, labels, tmp_path, compare=str(run))


def test_vectors_are_also_judged_on_order_and_documents(
    runs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    embedder, _ = runs("pairs")
    _, rows = runs("reranker")
    args = {"reranking": {"local_path": str(rows)}}
    found = judged(embedder, rows, tmp_path, eval_dataset=("reranking",), dataset_args=args)
    assert set(scores(found)) == {"ndcg@10", "mrr@10", "map"}
    folder = tmp_path / "beir"
    folder.mkdir()
    for name, key in (("corpus", "d"), ("queries", "q")):
        lines = [json.dumps({"_id": f"{key}{n}", "title": "", "text": word}) for n, word in enumerate(WORDS)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    judgements = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(len(WORDS)))]
    (folder / "qrels.tsv").write_text("\n".join(judgements))
    assert scores(judged(embedder, folder, tmp_path))["recall@10"] > 0


def test_what_a_model_can_do_is_read_from_its_files(
    runs: Callable[[str], tuple[Path, Path]], tiny_model_dir: Callable[..., Path], tmp_path: Path
) -> None:
    def kind(path: Path) -> str:
        return skill_of(find(ModelConfig(path=str(path)))).kind

    kinds = {"seq_cls": "classes", "number": "classes", "token_cls": "tags", "scored": "vectors", "reranker": "pairs"}
    for task, wanted in kinds.items():
        run, _ = runs(task)
        assert kind(run) == wanted
        bare = next((run / "checkpoints").glob("step-*"))
        copied = tmp_path / task
        copied.mkdir()
        for file in bare.rglob("*"):
            if file.is_file() and file.name not in ("config.yaml", "MANIFEST.json"):
                (copied / file.relative_to(bare)).parent.mkdir(parents=True, exist_ok=True)
                (copied / file.relative_to(bare)).write_bytes(file.read_bytes())
        assert kind(copied) == wanted  # also without our settings beside it
    assert kind(tiny_model_dir("qwen2")) == "language"


def test_other_questions_are_refused_before_anything_is_loaded(
    runs: Callable[[str], tuple[Path, Path]], tiny_model_dir: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    reranker, rows = runs("reranker")
    classifier, _ = runs("seq_cls")
    with pytest.raises(ConfigError, match="the model scores texts for a query, and general_qa is for one that talks"):
        judged(reranker, rows, tmp_path, eval_dataset=("general_qa",))
    with pytest.raises(ConfigError, match="the model talks, and tagging is for one that tags words"):
        judged(tiny_model_dir("qwen2"), rows, tmp_path, eval_dataset=("tagging",))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*label"):
        judged(classifier, rows, tmp_path)
    _, pairs = runs("pairs")
    with pytest.raises(ConfigError, match="takes some that do not answer"):
        judged(reranker, pairs, tmp_path)
    assert main(["infer", "--model", str(reranker)]) == 2
    assert "luthier deploy serves it" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["pairs", "seq_cls", "token_cls", "reranker"])
def test_a_soup_of_what_does_not_talk_opens_as_what_it_was_made_of(
    task: str, runs: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Half-way from the base to the tuned model; a head that the base has not is the tuned one's."""
    import transformers

    run, _ = runs(task)
    base, half = run.parents[1] / "base", tmp_path / "half"
    head = average(ModelConfig(path=str(base)), [str(run)], [2.0], 0.5, half)
    of_base = dict(transformers.AutoModel.from_pretrained(base).named_parameters())
    opened = getattr(transformers, CLASSES[head.kind]).from_pretrained(half)
    tuned = getattr(transformers, CLASSES[head.kind]).from_pretrained(find(ModelConfig(path=str(run))).model.path)
    wanted = dict(tuned.named_parameters())
    moved = 0
    for name, value in opened.named_parameters():
        before = of_base.get(name.removeprefix("bert."))
        if before is None or "pooler" in name:  # the base fills gaps: its pooler was never trained
            torch.testing.assert_close(value, wanted[name])
        else:
            torch.testing.assert_close(value, (before + wanted[name]) / 2)
            moved += not torch.equal(before, wanted[name])
    assert moved > 10
    skill = skill_of(find(ModelConfig(path=str(half))))
    assert skill.kind == skill_of(find(ModelConfig(path=str(run)))).kind
    assert (half / "modules.json").exists() == (task == "pairs")
