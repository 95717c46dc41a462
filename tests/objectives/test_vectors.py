"""Embeddings, rerankers and students: losses, gradients and artefacts against their references."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import LINES
from encoders import save_encoder
from ranks import together
from settings import HERE, cut, encoded, learnable, measure, opened, same
from torch.nn import functional as F

from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.base.records import BadRow, Chat, Message, Similar, Text
from luthier.data.batch import Group
from luthier.engine.mesh import open_mesh
from luthier.engine.step import evaluate
from luthier.model import methods
from luthier.model.config import Lora
from luthier.model.vectors import files, pooling_of
from luthier.objectives.config import Distill, Embed, GenerativeRerank, Rerank
from luthier.objectives.distil import Distillation
from luthier.objectives.embedding import Embedding, facts
from luthier.objectives.reranking import listwise
from luthier.objectives.setting import Learnable
from luthier.objectives.teacher import Stored, ask, load_teacher


def rows(hard: int = 1, count: int = 6) -> list[Similar]:
    texts = [f"{LINES[n % 6][:25]} {n}" for n in range(40)]
    return [
        Similar(texts[n], (texts[n + 7],), tuple(texts[n + 14 + k] for k in range(hard)), HERE, weight=1.0 + n % 2)
        for n in range(count)
    ]


def pairs(count: int = 6) -> list[Similar]:
    return [
        Similar(row.query, row.positives, (), HERE, score=score)
        for row, score in zip(rows(0, count), np.linspace(0, 1, count).tolist(), strict=True)
    ]


CUTS = [[[n] for n in range(6)], [[5, 3], [0, 1, 2, 4]], [[0, 1, 2], [3, 4, 5], []]]


@pytest.mark.parametrize("loss", ["infonce", "cosine", "cosent"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_any_cut_of_a_step_gives_one_gradient(tmp_path: Path, loss: Any, pooling: Any):
    """Even where rows meet: every micro-batch knows the gradients of the whole step.  Dropout is on in the cuts."""
    folder = save_encoder(tmp_path, "bert")
    objective = learnable(Embed(loss=loss, pooling=pooling, matryoshka=(32, 8)), folder)
    model = opened(objective, folder, dropout=False)
    groups = encoded(objective, rows() if loss == "infonce" else pairs())
    whole = measure(model, objective, cut(groups, [range(6)]))
    assert whole[0].loss > 0 and whole[0].grad_norm > 0
    for bins in CUTS:
        same(whole, measure(model, objective, cut(groups, bins)), within=2e-5)


def test_dropout_falls_the_same_way_in_both_passes(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert", hidden_dropout_prob=0.3)
    objective = learnable(Embed(loss="infonce"), folder)
    model = opened(objective, folder)
    assert isinstance(objective, Embedding)
    step = cut(encoded(objective, rows()), CUTS[1])
    objective.prepare(model, step)
    kept = {batch.samples: objective.coupled.known[batch.samples] for batch in step}
    total = sum(float(losses.sum()) for losses, _ in kept.values())
    vectors, told = [], []
    for batch in step:
        _, embeddings = objective.coupled.loss(
            batch, facts(batch), lambda batch: objective.embed(model, batch), objective.losses
        )
        vectors.append(embeddings.detach())
        told.append(facts(batch))
    assert float(objective.losses(torch.cat(vectors), torch.cat(told)).sum()) == pytest.approx(total, rel=1e-5)


def test_infonce_is_the_written_out_loss_and_knows_duplicates(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    same_text = [Similar("one", ("shared",), ("bad",), HERE), Similar("two", ("shared",), (), HERE)]
    model = None
    found: list[float] = []
    for masked in (True, False):
        objective = learnable(Embed(loss="infonce", mask_duplicates=masked, temperature=0.1), folder)
        model = model or opened(objective, folder, dropout=False)
        found.append(measure(model, objective, cut(encoded(objective, same_text), [[0, 1]]))[0].loss)
    assert model is not None

    def vector(text: str) -> torch.Tensor:
        assert model is not None
        read = model.tokenizer(text, return_tensors="pt")
        hidden = model.base(**read).last_hidden_state[0]
        return F.normalize(hidden.mean(0), dim=0)

    one, two, good, bad = (vector(text).detach() for text in ("one", "two", "shared", "bad"))
    near = lambda a, b: float(a @ b) / 0.1  # noqa: E731
    softer = [torch.tensor([near(q, good), near(q, good), near(q, bad)]) for q in (one, two)]
    sharper = [logits[1:] for logits in softer]
    for loss, logits in zip(found, (sharper, softer), strict=True):
        wanted = sum(float(torch.logsumexp(row, 0) - row[0]) for row in logits) / 2
        assert loss == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("config", "record", "code"),
    [
        (Embed(loss="cosine"), Similar("q", ("a",), (), HERE, score=4.0), "bad_score"),
        (Embed(loss="cosent"), Similar("q", ("a",), (), HERE), "no_score"),
        (Embed(loss="infonce"), Similar("q", (), ("b",), HERE), "no_positive"),
        (Rerank(loss="pointwise"), Similar("q", ("a",), (), HERE, score=4.0), "bad_score"),
        (Rerank(loss="listwise"), Similar("q", ("a",), (), HERE), "no_negative"),
        (Rerank(loss="listwise"), Similar("q", (), ("b", "c"), HERE), "no_positive"),
    ],
)
def test_rows_that_a_loss_has_no_use_for_say_why(tmp_path: Path, config: Any, record: Similar, code: str):
    with pytest.raises(BadRow) as refused:
        learnable(config, save_encoder(tmp_path, "bert")).encode(record)
    assert refused.value.fault.code == code


def test_what_cannot_be_learned_is_refused(tiny_model_dir: Callable[..., Path]):
    with pytest.raises(ValueError, match="whole numbers from 1 on"):
        Embed(matryoshka=(8, 0))
    with pytest.raises(ValueError, match="the same word"):
        GenerativeRerank(positive_token="a", negative_token="a")
    with pytest.raises(ValueError, match="give top_k"):
        Distill(teacher="x", store="folder")
    with pytest.raises(ConfigError, match="does not fit into 64 tokens"):
        learnable(GenerativeRerank(positive_token="a", negative_token="b"), tiny_model_dir("qwen2"), max_length=64)
    with pytest.raises(ValueError, match="beta is for jsd"):
        Distill(teacher="t", beta=0.3)
    assert Distill(teacher="t", divergence="jsd", beta=0.3).beta == 0.3


def test_hard_negatives_are_drawn_anew(tmp_path: Path):
    objective = learnable(Embed(loss="infonce", negatives=2), save_encoder(tmp_path, "bert"))
    words = sorted({word for line in LINES for word in line.split()})[:6]
    group = objective.encode(Similar("q", tuple(words[:2]), tuple(words[2:]), HERE))
    assert group is not None and len(group.sequences) == 7 and objective.vary is not None
    drawn = [objective.vary(group, np.random.default_rng(n)) for n in range(12)]
    assert {len(one.sequences) for one in drawn} == {4}
    assert len({tuple(tokens.ids.tobytes() for tokens in one.sequences) for one in drawn}) > 4


def judged(objective: Learnable, folder: Path, groups: list[Group], bins: Sequence[Sequence[int]]) -> dict[str, float]:
    """What a set is told to be where it is judged in these micro-batches, by one process of this many or by all."""
    with open_mesh("cpu") as mesh:
        model = opened(objective, folder, dropout=False)
        return evaluate(model, objective, cut(groups, bins)[mesh.rank :: mesh.world], mesh).metrics


@pytest.mark.parametrize("loss", ["infonce", "cosine", "cosent"])
def test_a_set_is_judged_alike_in_any_micro_batches_and_processes(tmp_path: Path, loss: Any):
    folder = save_encoder(tmp_path, "bert")
    objective = learnable(Embed(loss=loss, matryoshka=(32, 8)), folder)
    groups = encoded(objective, rows(count=7) if loss == "infonce" else pairs(7))
    whole = judged(objective, folder, groups, [range(7)])
    alone = [[n] for n in (4, 0, 6, 2, 1, 5, 3)]
    for bins in (alone, [[5, 3], [], [0, 1, 2, 4], [6]], [range(6), [6]]):
        assert judged(objective, folder, groups, bins) == pytest.approx(whole, rel=1e-5)
    for found in together(2, lambda: judged(objective, folder, groups, [*alone, []])):
        assert found == pytest.approx(whole, rel=1e-5)
    # The whole set is one company, so this is what a step that takes all of it is told.
    step, _ = measure(opened(objective, folder, dropout=False), objective, cut(groups, [range(7)]))
    assert whole["loss"] == pytest.approx(step.loss, rel=1e-5) and step.loss > 0.01
    assert loss not in whole


@pytest.mark.parametrize("loss", ["infonce", "cosent"])
def test_many_rows_meet_in_companies_and_a_row_too_many_is_not_alone(tmp_path: Path, loss: Any):
    folder = save_encoder(tmp_path, "bert")
    objective = learnable(Embed(loss=loss), folder)
    texts = [f"{LINES[n % 6][:20]} {n}" for n in range(130)]
    scores = [None if loss == "infonce" else n % 3 / 2 for n in range(65)]
    records = [
        Similar(texts[n], (texts[n + 65],), (), HERE, weight=1.0 + n % 2, score=score) for n, score in enumerate(scores)
    ]
    groups = encoded(objective, records)
    model = opened(objective, folder, dropout=False)
    companies = [range(33), range(33, 65)]
    steps = [measure(model, objective, cut(groups, [company]))[0] for company in companies]
    mean = sum(step.loss * step.trained for step in steps) / sum(step.trained for step in steps)
    assert steps[0].loss != pytest.approx(steps[1].loss, rel=1e-3)
    found = judged(objective, folder, groups, [[n] for n in range(65)])
    assert found["loss"] == pytest.approx(mean, rel=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("loss", ["infonce", "cosent"])
def test_a_set_of_one_company_has_the_loss_of_sentence_transformers(tmp_path: Path, loss: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
        folder = save_encoder(tmp_path / "base", "bert", auto="AutoModel")
        objective = learnable(Embed(loss=loss, mask_duplicates=False, temperature=0.05), folder)
        model, made = opened(objective, folder, dropout=False), tmp_path / "made"
        methods.save(model, made)
        for name, text in objective.files(model).items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)
        theirs = library.SentenceTransformer(str(made), device="cpu").eval()
        asked = [replace(row, weight=1.0) for row in (rows() if loss == "infonce" else pairs())]
        columns = [[row.query for row in asked], [row.positives[0] for row in asked]]
        columns += [[row.negatives[0] for row in asked]] if loss == "infonce" else []
        inputs = [theirs.preprocess(column) for column in columns]
        kind = losses.MultipleNegativesRankingLoss if loss == "infonce" else losses.CoSENTLoss
        scores = torch.tensor([row.score or 0.0 for row in asked])
        with torch.no_grad():
            wanted = float(kind(theirs, scale=20.0)(inputs, scores))
    found = judged(objective, folder, encoded(objective, asked), [[3], [5, 0], [1, 2], [4]])
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)


def test_metrics_of_a_set_are_those_of_its_ranking(tmp_path: Path):
    objective = learnable(Embed(loss="infonce"), save_encoder(tmp_path, "bert"))
    told = torch.zeros(6, 6, dtype=torch.float64)
    told[:, 0] = torch.tensor([0, 1, 0, 1, 0, 1])
    told[:, 2] = torch.tensor([0, 0, 1, 1, 2, 2])
    told[:, 4] = torch.arange(6)
    vectors = torch.tensor([[1, 0], [1, 0.1], [1, 0], [0, 1], [0, 1], [1, 1]]).float()
    # Cosines to (1, .1), (0, 1), (1, 1): the first finds its own first, the second last, the third second.
    told[:, 3] = 1
    found = objective.measure({"vectors": vectors, "facts": told})
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert found["recall@1"] == pytest.approx(1 / 3) and found["recall@10"] == 1.0
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + 1 / np.log2(3)) / 3)


@pytest.mark.parametrize("mode", ["mean", "first", "last"])
def test_pooling_is_read_back_from_its_files(tmp_path: Path, mode: Any):
    for name, text in files(mode, width=8, max_length=64, prompts={}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert pooling_of(tmp_path) == mode


@pytest.mark.peer
@pytest.mark.parametrize("method", [None, Lora(rank=2)])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_artefacts_give_the_same_vectors_in_sentence_transformers(tmp_path: Path, pooling: Any, method: Any):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        folder = save_encoder(tmp_path / "base", "bert", auto="AutoModel")
        objective = learnable(Embed(loss="infonce", pooling=pooling), folder)
        model = opened(objective, folder, method, dropout=False)
        with torch.no_grad():
            for weight in model.trained().values():
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
        made = tmp_path / "made"
        methods.save(model, made)
        for name, text in objective.files(model).items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(text)
        theirs = library.SentenceTransformer(str(made), device="cpu").encode(LINES)
    assert isinstance(objective, Embedding)
    groups = encoded(objective, [Similar(line, (line,), (), HERE) for line in LINES])
    with torch.no_grad():
        ours = F.normalize(objective.embed(model, cut(groups, [range(len(LINES))])[0])[::2], dim=1)
    assert float((ours - torch.from_numpy(theirs)).abs().max()) < 1e-5


def test_texts_that_are_all_labelled_alike_teach_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = save_encoder(tmp_path, "bert")
    objective = learnable(Rerank(), folder)
    alone, both = encoded(objective, rows(hard=0)), encoded(objective, rows(hard=1))
    for alike in (alone, encoded(objective, [Similar("q", (), ("a", "b"), HERE)])):
        with pytest.raises(DataError, match=r"all texts are labelled alike, with [01],.*under pos and neg") as caught:
            objective.begin([cast("Any", alike)], Console())
        assert caught.value.code == "one_label"
    capsys.readouterr()
    objective.begin([cast("Any", both), cast("Any", both)], Console())
    objective.begin([cast("Any", encoded(objective, pairs()))], Console())
    assert capsys.readouterr().err == ""
    objective.begin([cast("Any", both), cast("Any", alone)], Console())
    assert "all validation texts are labelled alike" in capsys.readouterr().err


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_rerankers_have_one_gradient_in_any_cut(tmp_path: Path, loss: Any):
    folder = save_encoder(tmp_path, "bert")
    objective = learnable(Rerank(loss=loss), folder)
    model = opened(objective, folder, dropout=False)
    groups = encoded(objective, rows(hard=3))
    whole = measure(model, objective, cut(groups, [range(6)]))
    for bins in CUTS:
        same(whole, measure(model, objective, cut(groups, bins)))


def test_listwise_is_torchs_cross_entropy():
    scores = torch.randn(7, generator=torch.Generator().manual_seed(0))
    losses = listwise(scores, torch.tensor([1.0, 0, 0, 0.5, 0.5, 0, 0]), (3, 4))
    first = F.cross_entropy(scores[None, :3], torch.tensor([0]))
    second = F.cross_entropy(scores[None, 3:], torch.tensor([[0.5, 0.5, 0, 0]]))
    assert torch.allclose(losses, torch.stack([first, second]), atol=1e-6)


@pytest.mark.peer
def test_rerankers_give_the_same_scores_in_cross_encoder(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers")
        folder = save_encoder(tmp_path / "base", "bert")
        objective = learnable(Rerank(), folder)
        model = opened(objective, folder, dropout=False)
        methods.save(model, tmp_path / "made")
        theirs = library.CrossEncoder(str(tmp_path / "made"), device="cpu", max_length=64)
        asked = rows(hard=2, count=2)
        texts = [(row.query, text) for row in asked for text in (*row.positives, *row.negatives)]
        scores = theirs.predict(texts, activation_fn=torch.nn.Identity())
    batch = cut(encoded(objective, asked), [range(2)])[0]
    with torch.no_grad():
        assert float((model.scores(batch)[:, 0] - torch.from_numpy(scores)).abs().max()) < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize(("loss", "count"), [("pointwise", 3), ("listwise", 1)])
def test_losses_of_rerankers_are_those_of_cross_encoders(loss: Any, count: int, tmp_path: Path):
    """Theirs compares texts of different queries where there are several; of one, only its own are left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library = pytest.importorskip("sentence_transformers.cross_encoder")
        folder = save_encoder(tmp_path / "base", "bert")
        objective = learnable(Rerank(loss=loss), folder)
        model = opened(objective, folder, dropout=False)
        methods.save(model, tmp_path / "made")
        theirs = library.CrossEncoder(str(tmp_path / "made"), device="cpu", max_length=64).eval()
        asked = [replace(row, weight=1.0) for row in rows(hard=3, count=count)]
        columns = [
            [row.query for row in asked],
            *zip(*((*row.positives, *row.negatives) for row in asked), strict=True),
        ]
        if loss == "pointwise":
            pairs = [(query, text) for column in columns[1:] for query, text in zip(columns[0], column, strict=True)]
            labels = torch.tensor([1.0] * count + [0.0] * 3 * count)
            expected = library.losses.BinaryCrossEntropyLoss(theirs)(list(zip(*pairs, strict=True)), labels)
        else:
            ranking = library.losses.MultipleNegativesRankingLoss
            expected = ranking(theirs, num_negatives=None, scale=1, activation_fn=torch.nn.Identity())(columns, None)
        expected.backward()
        gradient = torch.stack([weight.grad.norm() for weight in theirs.parameters() if weight.grad is not None]).norm()
    ours = measure(model, objective, cut(encoded(objective, asked), [range(count)]))[0]
    assert ours.loss == pytest.approx(float(expected.detach()), abs=1e-5)
    assert ours.grad_norm == pytest.approx(float(gradient), rel=1e-5)


def test_yes_and_no_are_weighed_behind_the_prompt(tiny_model_dir: Callable[..., Path]):
    folder = tiny_model_dir("qwen2")
    objective = learnable(GenerativeRerank(positive_token="a", negative_token="b"), folder, max_length=600)
    model = opened(objective, folder, dropout=False)
    groups = encoded(objective, rows(hard=1, count=2))
    whole = measure(model, objective, cut(groups, [range(2)]))
    words = [model.tokenizer(word).input_ids[0] for word in ("a", "b")]
    total = count = 0.0
    for group in groups:
        for tokens in group.sequences:
            logits = model.base(input_ids=torch.from_numpy(tokens.ids.astype(np.int64))[None]).logits[0, -1, words]
            assert tokens.values is not None
            loss = F.cross_entropy(logits[None], torch.tensor([0 if tokens.values[0] else 1]))
            total, count = total + float(loss.detach()) * float(tokens.weights[0]), count + float(tokens.weights[0])
    assert whole[0].loss == pytest.approx(total / count, rel=1e-5)
    with pytest.raises(ConfigError, match="2 tokens"):
        learnable(GenerativeRerank(positive_token="ab"), folder)


def chats() -> list[Chat]:
    return [Chat((Message("user", LINES[n]), Message("assistant", LINES[5 - n])), HERE) for n in range(4)]


@pytest.mark.parametrize("divergence", ["forward", "reverse", "jsd"])
def test_students_learn_the_same_live_and_from_what_is_kept(
    tmp_path: Path, tiny_model_dir: Callable[..., Path], divergence: Any
):
    folder, teacher = tiny_model_dir("qwen2"), tiny_model_dir("qwen2", seed=1)
    config = Distill(teacher=str(teacher), divergence=divergence, temperature=2.0, hard_share=0.3)
    objective = learnable(config, folder, max_length=128)
    assert isinstance(objective, Distillation)
    model = opened(objective, folder, dropout=False)
    groups = encoded(objective, chats())
    live = measure(model, objective, cut(groups, [range(4)]))
    same(live, measure(model, objective, cut(groups, [[2], [0, 3], [1], []])))
    assert 0 < live[0].means["kl"][0] / live[0].means["kl"][1] < 30

    def keep(top_k: int) -> Any:
        model_of = lambda: load_teacher(objective.teacher.config, torch.device("cpu"))  # noqa: E731
        place = tmp_path / str(top_k)
        ask(model_of, groups, place, top_k=top_k, temperature=2.0, batch_tokens=100, progress=lambda n: None)
        objective_of = Distillation(config, objective.language, Stored(place))
        return measure(model, objective_of, cut(groups, [[2], [0, 3], [1], []]))

    same(live, keep(model.vocabulary - 1), within=1e-4)
    few = keep(20)
    assert few[0].means["kl"][0] < live[0].means["kl"][0]


def test_a_teacher_with_another_vocabulary_is_refused(tmp_path: Path, tiny_model_dir: Callable[..., Path]):
    other = save_encoder(tmp_path, "bert")
    with pytest.raises(ConfigError, match="different vocabularies"):
        learnable(Distill(teacher=str(other)), tiny_model_dir("qwen2"))
    with pytest.raises(ConfigError, match="no teacher"):
        learnable(Distill(), tiny_model_dir("qwen2"))


def test_texts_are_learned_whole(tiny_model_dir: Callable[..., Path]):
    folder = tiny_model_dir("qwen2")
    objective = learnable(Distill(teacher=str(folder)), folder)
    model = opened(objective, folder, dropout=False)
    result, _ = measure(model, objective, cut(encoded(objective, [Text(LINES[0], HERE)]), [[0]]))
    assert result.loss == pytest.approx(0.0, abs=1e-5) and json.dumps(result.means)
