"""Retrieval in the layout of BEIR: documents found by the nearness of their embeddings to the query's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from luthier.base.errors import ConfigError
from luthier.base.records import Message
from luthier.evaluate.config import Method, SetConfig
from luthier.evaluate.files import read
from luthier.evaluate.task import Item, Rates, Task, unmarked
from luthier.score.ranking import Ranked, ndcg, recall, reciprocal_rank

_K = 10


def retrieval(name: str, folder: Path, config: SetConfig, _: Method) -> list[Task]:
    """A folder, or folders in it, with corpus.jsonl, queries.jsonl and qrels.tsv (or qrels/<split>.tsv)."""
    alone = (folder / "corpus.jsonl").is_file()
    known = [folder] if alone else sorted(path.parent for path in folder.glob("*/corpus.jsonl"))
    chosen = [path for path in known if not config.subset_list or path.name in config.subset_list]
    if not chosen:
        there = ", ".join(path.name for path in known)
        fix = f"There are: {there}" if there else "Look at local_path in --dataset_args"
        raise ConfigError("no such folder with a corpus.jsonl", where=str(folder), code="no_subset", fix=fix)
    tasks: list[Task] = []
    for path in chosen:
        documents = tuple(
            (line.text("_id"), f"{line.text('title')} {line.text('text')}".strip())
            for line in read(path / "corpus.jsonl")
        )
        judged = path / "qrels.tsv"
        judged = judged if judged.is_file() else path / "qrels" / f"{config.split or 'test'}.tsv"
        right: dict[str, list[str]] = {}
        for line in read(judged):
            if float(line.text("score") or 0) > 0:
                right.setdefault(line.text("query-id"), []).append(line.text("corpus-id"))
        queries = [line for line in read(path / "queries.jsonl") if line.text("_id") in right][: config.limit]
        items = tuple(
            Item(line.text("_id"), (Message("user", line.text("text")),), tuple(right[line.text("_id")]))
            for line in queries
        )
        tasks.append(
            Task(name, path.name, items, "retrieve", unmarked, metrics=config.metric_list, documents=documents)
        )
    return tasks


def mark_ranking(item: Item, found: Mapping[str, float]) -> Rates:
    """nDCG, recall and reciprocal rank of the first ten documents."""
    ranked = Ranked.of(found, dict.fromkeys(item.references, 1.0))
    rates = {"ndcg@10": ndcg(ranked, _K), "recall@10": recall(ranked, _K), "mrr@10": reciprocal_rank(ranked, _K)}
    return {name: (value, 1.0) for name, value in rates.items()}
