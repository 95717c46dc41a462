"""Pieces of a Unigram tokenizer: the same each time, likelier than those that `tokenizers` learns, and complete."""

import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from luthier.base.errors import ConfigError
from luthier.model.scratch_encoders import SENTINELS, T5_SPECIAL, bert_tokenizer, t5_tokenizer
from luthier.model.unigram import unigram_pieces

STEMS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def lines(seed: int, count: int = 400) -> list[str]:
    drawn = random.Random(seed)
    ends = ["", "ing", "ed", "er", "est", "ness", "ly"]
    return [
        " ".join(drawn.choice(STEMS[: 3 + n % 140]) + drawn.choice(ends) for _ in range(9)) + "\u3002\u4f60\u597d"
        for n in range(count)
    ]


def learner() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])  # pyright: ignore
    return made


def test_the_same_text_gives_the_same_pieces_and_scores():
    texts = lines(0)
    learned = [unigram_pieces(learner(), texts, 200) for _ in range(4)]
    assert all(pieces == learned[0] for pieces in learned)
    assert unigram_pieces(learner(), texts[::-1], 200) == learned[0]  # the order of rows does not matter


def test_pieces_are_as_many_as_wanted_with_every_character_and_the_likeliest_first():
    texts = lines(0)
    pieces = unigram_pieces(learner(), texts, 200)
    names, scores = [name for name, _ in pieces], [score for _, score in pieces]
    assert len(pieces) == len(set(names)) == 200
    assert {character for text in texts for character in text if character != " "} <= set(names)
    assert scores == sorted(scores, reverse=True) and scores[0] < 0


def test_another_text_is_cut_into_fewer_pieces_than_by_the_trainer_of_the_library():
    texts, others = lines(0), lines(1)
    theirs = learner()
    theirs.train_from_iterator(
        texts,
        trainers.UnigramTrainer(vocab_size=201, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    ours = learner()
    ours.model = models.Unigram([("<unk>", 0.0), *unigram_pieces(ours, texts, 200)], unk_id=0)  # pyright: ignore
    assert ours.get_vocab_size() == theirs.get_vocab_size()
    needed = [sum(len(cut.ids) for cut in made.encode_batch(others)) for made in (ours, theirs)]
    assert needed[0] <= needed[1] * 1.02


def test_names_of_control_tokens_in_a_text_are_no_pieces():
    texts = [f"{line} </s> <pad> <extra_id_0>" for line in lines(2, 100)]
    tokenizer = t5_tokenizer(texts, 300)
    assert len(tokenizer) == 300 and len(tokenizer.get_vocab()) == 300
    assert tokenizer.convert_tokens_to_ids(list(T5_SPECIAL)) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == 299 and SENTINELS == 100


def test_too_many_characters_and_too_little_text_are_told():
    with pytest.raises(ConfigError, match="different characters, and there is room for 10 pieces"):
        unigram_pieces(learner(), lines(0), 10)
    with pytest.raises(ConfigError, match="the text is enough for"):
        t5_tokenizer(["one two", "two three"], 300)
    with pytest.raises(ConfigError, match=r"alone make [0-9]+ tokens, more than 300"):
        bert_tokenizer([chr(0x4E00 + n) for n in range(300)], 300)
