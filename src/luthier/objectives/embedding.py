"""Embeddings: texts as vectors, learned from pairs with scores, or from queries with texts that answer them.

    infonce  loss = sum_q w_q -log softmax(cos(q, .) / temperature)_own / sum_q w_q
    cosine   loss = sum_p w_p (cos_p - score_p)^2 / sum_p w_p
    cosent   loss = log(1 + sum over pairs i less alike than j of exp((cos_i - cos_j) / temperature))

In infonce and cosent all rows of the optimizer step meet, over all micro-batches and processes (see `coupled`).  When a
set is judged its rows meet in companies of their own, which micro-batches have no part in (`Embedding.measure`).

Legend: N sequences, S sequences of a batch, Q queries, C other texts, P pairs, D width, F facts of a sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.base.errors import ConfigError
from luthier.base.records import BadRow, Fault, Record, Similar, Task
from luthier.data.batch import Batch, Group, Tokens, whole
from luthier.data.plain import Plain
from luthier.engine.objective import Terms
from luthier.model.folder import model_folder, read_json
from luthier.model.heads import Head, Pooling, pooled
from luthier.model.load import Model
from luthier.model.vectors import files, pooling_of
from luthier.objectives import similarity
from luthier.objectives.config import Embed
from luthier.objectives.coupled import Coupled
from luthier.objectives.setting import Plainly, Setting
from luthier.score.ranking import pearson, spearman

QUERY, GOOD, BAD = 0.0, 1.0, 2.0
"""What a sequence is in its row."""
_ROLE, _SCORE, _SAMPLE, _WEIGHT, _HIGH, _LOW = range(6)
"""Facts of a sequence; the last two are halves of a number that equal texts share."""
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "first", "last": "last"}
SURVEYED = 100
"""Rows that decide the loss where none was named."""
AMONG = 1000
"""Rows of similarities held at once when a whole set is judged."""
COMPANY = 64
"""Rows that meet in the loss at most when a set is judged."""


def embedding(config: Embed, setting: Setting) -> Embedding:
    """The objective for a model and its data.

    Raises:
        ConfigError: a width that vectors do not have.
        ModelError: files of the model that cannot be read.
    """
    folder = model_folder(setting.model)
    settings = read_json(folder / "config.json")
    width = settings.get("hidden_size")
    if isinstance(width, int) and any(cut > width for cut in config.matryoshka):
        raise ConfigError(f"vectors have {width} numbers", where="--matryoshka", fix=f"Give widths up to {width}")
    loss = config.loss
    if loss is None:
        scored = any(record.score is not None for record in islice(_similar(setting), SURVEYED))
        loss = "cosent" if scored else "infonce"
    pooling: Pooling | None = POOLINGS[config.pooling] if config.pooling else pooling_of(folder)
    causal = any("ForCausalLM" in name for name in settings.get("architectures") or [])
    mesh = setting.mesh
    return Embedding(
        config,
        loss,
        pooling or ("last" if causal else "mean"),
        setting.plain,
        Coupled(mesh.gather, mesh.rank, mesh.world),
    )


def _similar(setting: Setting) -> Iterator[Similar]:
    return (record for record in setting.records("similarity", training=True) if isinstance(record, Similar))


@dataclass(frozen=True)
class Embedding(Plainly):
    """Training of a model that makes vectors of texts."""

    config: Embed
    loss: Literal["infonce", "cosine", "cosent"]
    pooling: Pooling
    plain: Plain
    coupled: Coupled = field(default_factory=lambda: Coupled(lambda rows: rows))
    task: Task = "similarity"
    stop_ids: frozenset[int] = frozenset()

    @property
    def head(self) -> Head:
        return Head("none")

    @property
    def key(self) -> str:
        """What `encode` depends on besides the record."""
        prompts = hashlib.sha256(f"{self.config.query_prompt}\0{self.config.text_prompt}".encode()).hexdigest()[:16]
        return f"embedding:2:{self.loss}:{prompts}:{self.plain.fingerprint}"

    @property
    def note(self) -> str | None:
        """Which loss is taken of which vectors."""
        return f"Vectors are learned by {self.loss}; a text's vector is the {self.pooling} of its hidden states"

    def encode(self, record: Record) -> Group | None:
        """The query, then texts that are like it, then texts that are not; None where the row weighs nothing.

        Raises:
            BadRow: `no_positive`, `no_score`, or `bad_score`, one that no cosine can be.
        """
        assert isinstance(record, Similar), "rows are read for the task of similarity"
        if not record.positives:
            raise BadRow(Fault("no_positive", record.where, "a text that is like the query is needed"))
        if self.loss != "infonce" and record.score is None:
            message = f"{self.loss} needs two texts with a score; without scores, use infonce"
            raise BadRow(Fault("no_score", record.where, message))
        score = 0.0 if record.score is None else record.score
        if self.loss == "cosine" and abs(score) > 1:
            message = f"a cosine lies between -1 and 1, this score is {score:g}; scale the scores, or use cosent"
            raise BadRow(Fault("bad_score", record.where, message, "score"))
        if not record.weight:
            return None
        texts = [(self.config.query_prompt + record.query, QUERY)]
        texts += [(self.config.text_prompt + text, GOOD) for text in record.positives]
        texts += [(self.config.text_prompt + text, BAD) for text in record.negatives if self.loss == "infonce"]
        words = [(self.plain.words(text), role) for text, role in texts]
        sequences = tuple(whole(word.ids, (role, score), record.weight, word.segments) for word, role in words)
        return Group(sequences, any(word.cut for word, _ in words))

    def vary(self, group: Group, rng: np.random.Generator) -> Group:
        """One of the texts like the query, and as many of those unlike it as are wanted."""
        query, *others = group.sequences
        good = [tokens for tokens in others if _role(tokens) == GOOD]
        bad = [tokens for tokens in others if _role(tokens) == BAD]
        chosen = [good[int(rng.integers(len(good)))]] if len(good) > 1 else good
        if self.config.negatives is not None and len(bad) > self.config.negatives:
            bad = [bad[int(place)] for place in rng.choice(len(bad), self.config.negatives, replace=False)]
        return Group((query, *chosen, *bad))

    def prepare(self, model: Model, step: Sequence[Batch]) -> None:
        """The gradient of each row's vector, where the step is more than one micro-batch."""
        if self.loss != "cosine":
            self.coupled.prepare(step, facts, lambda batch: self.embed(model, batch), self.losses)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        queries_S = facts(batch)[:, _ROLE] == QUERY
        return {self.loss: (batch.weights_S.double() * queries_S).sum()}

    def sums(self, model: Model, batch: Batch) -> Terms:
        facts_SF = facts(batch)
        loss, embeddings_SD = self.coupled.loss(batch, facts_SF, lambda batch: self.embed(model, batch), self.losses)
        outputs = {"vectors": embeddings_SD.detach(), "facts": facts_SF}
        return Terms({self.loss: loss + model.anchor()}, outputs=outputs)

    def embed(self, model: Model, batch: Batch) -> Tensor:
        """embeddings_SD, float32."""
        hidden_TD = model.hidden(batch)
        return pooled(hidden_TD.float(), batch.lengths, batch.offsets, self.pooling)

    def losses(self, embeddings_ND: Tensor, facts_NF: Tensor) -> Tensor:
        """The loss of each row at its query, 0 elsewhere, over all widths.  [N]"""
        if not len(embeddings_ND):
            return embeddings_ND.sum(1)
        widths = self.config.matryoshka or (embeddings_ND.shape[1],)
        weights = self.config.matryoshka_weights or (1.0,) * len(widths)
        total_N = embeddings_ND.new_zeros(len(embeddings_ND))
        for width, weight in zip(widths, weights, strict=True):
            total_N = total_N + weight * self._at_width(embeddings_ND[:, :width], facts_NF)
        return total_N

    def _at_width(self, embeddings_ND: Tensor, facts_NF: Tensor) -> Tensor:
        queries_Q = (facts_NF[:, _ROLE] == QUERY).nonzero()[:, 0]
        weights_Q = facts_NF[queries_Q, _WEIGHT].float()
        if self.loss == "infonce":
            losses_Q = self._infonce(embeddings_ND, facts_NF, queries_Q)
        else:
            first_PD, second_PD = embeddings_ND[queries_Q], embeddings_ND[queries_Q + 1]
            scores_P = facts_NF[queries_Q, _SCORE].float()
            if self.loss == "cosine":
                losses_Q = similarity.cosine_losses(first_PD, second_PD, scores_P)
            else:
                # One number for the step, told as if every row had it.
                losses_Q = similarity.cosent_loss(first_PD, second_PD, scores_P, 1 / self.config.temperature)
                losses_Q = losses_Q.expand(len(queries_Q))
        return embeddings_ND.new_zeros(len(embeddings_ND)).index_copy(0, queries_Q, losses_Q * weights_Q)

    def _infonce(self, embeddings_ND: Tensor, facts_NF: Tensor, queries_Q: Tensor) -> Tensor:
        others_C = (facts_NF[:, _ROLE] != QUERY).nonzero()[:, 0]
        good_C = facts_NF[others_C, _ROLE] == GOOD
        mine_QC = facts_NF[queries_Q, _SAMPLE][:, None] == facts_NF[others_C, _SAMPLE][None, :]
        own_Q = (mine_QC & good_C).long().argmax(1)
        allowed_QC = torch.ones_like(mine_QC) if self.config.in_batch else mine_QC
        if self.config.mask_duplicates:
            keys_C2 = facts_NF[others_C][:, [_HIGH, _LOW]]
            same_QC = (keys_C2[own_Q][:, None] == keys_C2[None, :]).all(-1)
            allowed_QC = (allowed_QC & ~same_QC).scatter(1, own_Q[:, None], True)
        return similarity.infonce_losses(
            embeddings_ND[queries_Q], embeddings_ND[others_C], own_Q, allowed_QC, self.config.temperature
        )

    def files(self, model: Model) -> dict[str, str]:
        """What makes an artefact one of sentence-transformers."""
        prompts = {"query": self.config.query_prompt, "document": self.config.text_prompt}
        width = int(model.base.config.get_text_config().hidden_size)
        return files(self.pooling, width=width, max_length=self.plain.max_length, prompts=prompts)

    def measure(self, outputs: Mapping[str, Tensor]) -> dict[str, float]:
        """The loss, and over the whole set the correlation of cosines with scores, or the rank of each query's text."""
        order_N = outputs["facts"][:, _SAMPLE].argsort(stable=True)
        embeddings_ND, facts_NF = outputs["vectors"].float()[order_N], outputs["facts"][order_N]
        loss = {self.loss: self._judged(embeddings_ND, facts_NF)}
        vectors_ND = F.normalize(embeddings_ND, dim=1)
        queries_Q = (facts_NF[:, _ROLE] == QUERY).nonzero()[:, 0]
        if self.loss != "infonce":
            cosines_P = (vectors_ND[queries_Q] * vectors_ND[queries_Q + 1]).sum(1).double().numpy()
            scores_P = facts_NF[queries_Q, _SCORE].double().numpy()
            return loss | {"spearman": spearman(cosines_P, scores_P), "pearson": pearson(cosines_P, scores_P)}
        return loss | _found(vectors_ND, facts_NF, queries_Q)

    def _judged(self, embeddings_ND: Tensor, facts_NF: Tensor) -> float:
        """Mean loss of rows that meet in companies of neighbours in the set, as large as each other but for one row.

        Args:
            embeddings_ND, facts_NF: in the order of the set, each row's query first.
        """
        starts_Q = (facts_NF[:, _ROLE] == QUERY).nonzero()[:, 0]
        companies = starts_Q.tensor_split(-(-len(starts_Q) // COMPANY))
        sizes = [int(end - start) for start, end in pairwise([*(int(one[0]) for one in companies), len(facts_NF)])]
        parts = zip(embeddings_ND.split(sizes), facts_NF.split(sizes), strict=True)
        total = sum(float(self.losses(embeddings, facts).sum(dtype=torch.float64)) for embeddings, facts in parts)
        return total / float(facts_NF[starts_Q, _WEIGHT].sum())


def facts(batch: Batch) -> Tensor:
    """facts_SF, float64: role, score, sample, weight, and two numbers that only equal texts share."""
    if batch.values_N is None:
        return torch.zeros(0, 6, dtype=torch.float64, device=batch.ids_T.device)
    device = batch.ids_T.device
    sizes_G = torch.tensor(batch.groups, device=device)
    samples_S = torch.repeat_interleave(
        torch.tensor(batch.samples, dtype=torch.float64, device=device), sizes_G, output_size=len(batch.lengths)
    )
    # A polynomial of the ids, modulo 2 to the 64.
    powers_L = torch.cumprod(torch.full((max(batch.lengths),), 6364136223846793005, device=device), 0)
    owner_T = torch.repeat_interleave(torch.tensor(batch.lengths, device=device), output_size=len(batch.ids_T))
    hashed_S = torch.zeros(len(batch.lengths), dtype=torch.int64, device=device)
    hashed_S.index_add_(0, owner_T, (batch.ids_T + 1) * powers_L[batch.positions_T])
    columns = [
        batch.values_SK.double(),
        samples_S[:, None],
        batch.weights_S.double()[:, None],
        (hashed_S >> 32).double()[:, None],
        (hashed_S & 0xFFFFFFFF).double()[:, None],
    ]
    return torch.cat(columns, dim=1)


def _found(vectors_ND: Tensor, facts_NF: Tensor, queries_Q: Tensor) -> dict[str, float]:
    """nDCG, recall and MRR where each query has one text that answers, equal texts counting once."""
    others_C = (facts_NF[:, _ROLE] != QUERY).nonzero()[:, 0]
    _, which_C = torch.unique(facts_NF[others_C][:, [_HIGH, _LOW]], dim=0, return_inverse=True)
    first_K = torch.full((int(which_C.max()) + 1,), len(which_C)).scatter_reduce(
        0, which_C, torch.arange(len(which_C)), "amin"
    )
    texts_KD = vectors_ND[others_C[first_K]]
    good_C = facts_NF[others_C, _ROLE] == GOOD
    by_sample = dict(zip(facts_NF[others_C[good_C], _SAMPLE].tolist(), which_C[good_C].tolist(), strict=True))
    own_Q = torch.tensor([by_sample[sample] for sample in facts_NF[queries_Q, _SAMPLE].tolist()])
    places: list[Tensor] = []
    for part, own in zip(queries_Q.split(AMONG), own_Q.split(AMONG), strict=True):
        cosines_QK = vectors_ND[part] @ texts_KD.T
        mine_Q1 = cosines_QK.gather(1, own[:, None])
        # Whoever is as near counts half, so that vectors that are all the same are not praised.
        ties_Q = (cosines_QK == mine_Q1).sum(1) - 1
        places.append(1 + (cosines_QK > mine_Q1).sum(1) + (ties_Q + 1) // 2)
    place_Q = torch.cat(places).double()
    within = place_Q <= 10
    return {
        "ndcg@10": (within / torch.log2(place_Q + 1)).mean().item(),
        "mrr@10": (within / place_Q).mean().item(),
        "recall@1": (place_Q == 1).double().mean().item(),
        "recall@10": within.double().mean().item(),
    }


def _role(tokens: Tokens) -> float:
    assert tokens.values is not None, "encode gives every sequence its role"
    return float(tokens.values[0])
