"""Masked words, hidden spans and answers: equal to transformers' own losses, whatever a step is cut into."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LINES
from encoders import save_encoder
from settings import HERE, cut, encoded, learnable, measure, opened, same

from luthier.base.errors import ConfigError
from luthier.base.records import Chat, Message, Text
from luthier.data.batch import Group
from luthier.data.overlong import fit
from luthier.model.config import Shape
from luthier.model.scratch_encoders import bert_tokenizer, t5_tokenizer, write_encoder
from luthier.objectives.config import Mlm, Seq2Seq, SpanCorruption
from luthier.objectives.masked import word_numbers

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXTS = [" ".join(random.Random(seed).sample(LINES, 3)) for seed in range(40)]


def t5(folder: Path) -> Path:
    tokenizer = t5_tokenizer(TEXTS + [chr(97 + n % 26) * (n % 7 + 1) for n in range(200)], 300)
    shape = Shape(architecture="t5", vocab_size=300, max_position_embeddings=128, initializer_range=0.2, **SIZE)
    write_encoder(folder, tokenizer, shape, seed=1)
    return folder


@pytest.fixture(scope="module")
def t5_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5(tmp_path_factory.mktemp("t5"))


@pytest.mark.parametrize("shape", ["bert", "roberta", "modernbert"])
def test_masked_words_have_transformers_loss_and_any_cut_one_gradient(tmp_path: Path, shape: str):
    folder = save_encoder(tmp_path, shape)
    objective = learnable(Mlm(probability=0.4), folder)
    model = opened(objective, folder, dropout=False)
    groups = encoded(objective, [Text(text, HERE) for text in TEXTS[:6]])
    whole = measure(model, objective, cut(groups, [range(6)]))
    assert whole[0].trained > 20
    for bins in ([[n] for n in range(6)], [[5, 3], [0, 1, 2, 4], []]):
        same(whole, measure(model, objective, cut(groups, bins)))
    total = count = 0.0
    for group in groups:
        tokens = group.sequences[0]
        assert tokens.targets is not None
        labels = torch.from_numpy(np.where(tokens.weights > 0, tokens.targets, -100).astype(np.int64))[None]
        loss = model.base(input_ids=torch.from_numpy(tokens.ids.astype(np.int64))[None], labels=labels).loss
        total, count = total + loss.item() * int((labels >= 0).sum()), count + int((labels >= 0).sum())
    assert whole[0].loss == pytest.approx(total / count, rel=1e-5)


def test_another_epoch_hides_other_words_and_the_same_epoch_the_same(tmp_path: Path):
    objective = learnable(Mlm(), save_encoder(tmp_path, "bert"))
    group = objective.encode(Text(TEXTS[0], HERE))
    assert group is not None and objective.vary is not None
    first, again, other = (objective.vary(group, np.random.default_rng([1, epoch, 3])) for epoch in (0, 0, 1))
    assert (first.sequences[0].ids == again.sequences[0].ids).all()
    assert (first.sequences[0].weights != other.sequences[0].weights).any()
    ids = first.sequences[0].ids
    assert (ids[0], ids[-1]) == (2, 3)  # [CLS] and [SEP], which are never hidden
    assert first.sequences[0].weights[[0, -1]].tolist() == [0, 0]


def test_chinese_words_are_hidden_whole():
    pytest.importorskip("jieba")
    text = "我们去公园散步 with wonderful friends"
    characters = [(at, at + 1) for at in range(7)]
    offsets = [*characters, (8, 12), (13, 19), (19, 22), (23, 30)]
    words = word_numbers(text, offsets).tolist()
    assert words[0] == words[1] and words[3] == words[4] and words[5] == words[6]  # 我们 公园 散步
    assert len({words[0], words[2], words[3], words[5]}) == 4
    assert words[8] == words[9] != words[7]


def test_long_texts_are_cut_into_pieces_that_fill_the_model(tmp_path: Path):
    objective = learnable(Mlm(), save_encoder(tmp_path, "bert"), max_length=32)
    group = objective.encode(Text(" ".join(TEXTS), HERE, weight=2.0))
    assert group is not None
    pieces, outcome = fit(group, 32, "split")
    assert outcome == "split" and sum(map(len, pieces)) == len(group)
    assert {len(piece) for piece in pieces[:-1]} == {30}
    assert objective.vary is not None
    seen = [objective.vary(piece, np.random.default_rng(n)).sequences[0] for n, piece in enumerate(pieces)]
    assert max(map(len, seen)) == 32
    assert {weight for tokens in seen for weight in tokens.weights.tolist()} == {0.0, 2.0}
    assert fit(Group(group.sequences, bare=30), 32, "drop") == ([], "too_long")


def test_hidden_spans_have_t5s_loss_and_any_cut_one_gradient(t5_dir: Path):
    objective = learnable(SpanCorruption(), t5_dir)
    model = opened(objective, t5_dir, dropout=False)
    groups = encoded(objective, [Text(text, HERE) for text in TEXTS[:5]])
    whole = measure(model, objective, cut(groups, [range(5)]))
    for bins in ([[n] for n in range(5)], [[4, 0], [1, 2, 3], []]):
        same(whole, measure(model, objective, cut(groups, bins)))
    total = count = 0.0
    for group in groups:
        source, target = (torch.from_numpy(tokens.ids.astype(np.int64))[None] for tokens in group.sequences)
        loss = model.base(input_ids=source, labels=target[:, 1:]).loss
        total, count = total + loss.item() * (target.shape[1] - 1), count + target.shape[1] - 1
    assert whole[0].loss == pytest.approx(total / count, rel=1e-5)
    assert whole[0].trained == count


@pytest.mark.parametrize("kind", ["t5", "mt5", "bart"])
def test_answers_have_transformers_loss(tmp_path: Path, t5_dir: Path, kind: str):
    folder = {"t5": lambda _: t5_dir, "mt5": mt5, "bart": bart}[kind](tmp_path)
    objective = learnable(Seq2Seq(prefix="say: ", max_new_tokens=5, max_target_length=20), folder, max_length=128)
    model = opened(objective, folder, dropout=False)
    chats = [
        Chat((Message("user", LINES[n % 6]), Message("assistant", LINES[n % 5][:30])), HERE, weight=1.0 + n % 2)
        for n in range(5)
    ]
    groups = encoded(objective, chats)
    whole = measure(model, objective, cut(groups, [range(5)]))
    same(whole, measure(model, objective, cut(groups, [[4], [0, 1], [2, 3], []])))
    total = count = 0.0
    for number, chat in enumerate(chats):
        source = model.tokenizer("say: " + chat.messages[0].content, return_tensors="pt")
        answer = {"text_target": chat.messages[1].content, "truncation": True, "max_length": 19}
        labels = model.tokenizer(**answer, return_tensors="pt").input_ids
        loss = model.base(input_ids=source.input_ids, attention_mask=source.attention_mask, labels=labels).loss
        weight = (1.0 + number % 2) * labels.shape[1]
        total, count = total + loss.item() * weight, count + weight
    assert whole[0].loss == pytest.approx(total / count, rel=1e-5)
    assert objective.encode(Text("no question", HERE)) is None


def mt5(folder: Path) -> Path:
    from transformers import MT5Config, MT5ForConditionalGeneration

    tokenizer = t5_tokenizer(TEXTS + [chr(97 + n % 26) * (n % 7 + 1) for n in range(200)], 300)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    config = MT5Config(
        vocab_size=304, d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2, decoder_start_token_id=0,
        initializer_factor=1.0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    MT5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def bart(folder: Path) -> Path:
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = bert_tokenizer(TEXTS, 150)
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    config = BartConfig(
        vocab_size=150, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=3, forced_eos_token_id=3, init_std=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(folder)
    return folder


def test_models_that_cannot_are_refused_at_once(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    with pytest.raises(ConfigError, match="no sentinels"):
        learnable(SpanCorruption(), folder)
    with pytest.raises(ConfigError, match="no decoder_start_token_id"):
        learnable(Seq2Seq(), folder)


def test_answers_are_written_and_scored(t5_dir: Path):
    objective = learnable(Seq2Seq(max_new_tokens=6), t5_dir, max_length=128)
    model = opened(objective, t5_dir, dropout=False)
    chats = [Chat((Message("user", line), Message("assistant", line[:20])), HERE) for line in LINES[:3]]
    batch = cut(encoded(objective, chats), [range(3)])[0]
    with torch.no_grad():
        outputs = objective.sums(model, batch).outputs
    source = model.tokenizer(LINES[0], return_tensors="pt")
    theirs = model.base.generate(**source, max_new_tokens=6, do_sample=False)[0, 1:].tolist()
    assert outputs["written"][0].tolist()[: len(theirs)] == theirs
    perfect = objective.measure({"written": outputs["wanted"], "wanted": outputs["wanted"]})
    assert perfect["exact_match"] == perfect["f1"] == 1.0 and perfect["rouge-l"] == pytest.approx(1.0)
    assert objective.measure(outputs)["exact_match"] < 1.0
