"""Masking and span corruption: exact formats, and the distributions of their references."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from luthier.data.corrupt import hide_spans, mask_words, noise_spans, source_length

MASK, VOCABULARY = 4, 1000


def masks(words: list[int], trials: int = 4000, **changes: float):
    ids = np.arange(100, 100 + len(words), dtype=np.int32)
    for trial in range(trials):
        rng = np.random.default_rng([7, trial])
        seen, chosen = mask_words(
            ids, np.array(words), rng, mask_id=MASK, vocabulary=VOCABULARY, probability=0.15, **changes
        )
        yield ids, seen, chosen


def test_a_word_is_hidden_whole_or_not_at_all_and_special_tokens_never():
    words = [-1, 0, 1, 1, 1, 2, 3, 3, -1]
    counts = np.zeros(len(words))
    for ids, seen, chosen in masks(words):
        assert not chosen[0] and not chosen[-1]
        assert chosen[2] == chosen[3] == chosen[4] and chosen[6] == chosen[7]
        assert (seen[~chosen] == ids[~chosen]).all()
        counts += chosen
    # Four standard deviations of a share of 0.15 in 4000 draws.
    assert np.abs(counts[1:-1] / 4000 - 0.15).max() < 0.023


def test_of_the_chosen_eight_in_ten_are_masked_one_is_random_one_stays():
    fates: Counter[str] = Counter()
    for ids, seen, chosen in masks(list(range(40))):
        fates["mask"] += int((seen[chosen] == MASK).sum())
        fates["same"] += int((seen[chosen] == ids[chosen]).sum())
        fates["all"] += int(chosen.sum())
    assert fates["mask"] / fates["all"] == pytest.approx(0.801, abs=0.012)
    assert fates["same"] / fates["all"] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("whole", [True, False])
def test_masks_have_the_distribution_of_transformers_collator(tmp_path: Path, whole: bool):
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##believ", "##able", "luck", "here", "now"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    row = tokenizer("unbelievable luck here unbelievable now", return_offsets_mapping=whole)
    # With whole words their collator replaces nothing by random tokens.
    masked = 1.0 if whole else 0.8
    collator = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=whole, mask_replace_prob=masked, random_replace_prob=0.0 if whole else 0.1, seed=3
    )
    trials = 3000
    batch = collator([dict(row) for _ in range(trials)])
    words = np.array([-1 if word is None else word if whole else place for place, word in enumerate(row.word_ids())])
    ids = np.array(row["input_ids"], dtype=np.int32)
    seen, chosen = np.empty((trials, len(ids))), np.empty((trials, len(ids)), dtype=bool)
    for trial in range(trials):
        seen[trial], chosen[trial] = mask_words(
            ids,
            words,
            np.random.default_rng([1, trial]),
            mask_id=tokenizer.mask_token_id,
            vocabulary=len(tokenizer),
            masked=masked,
        )
    theirs = (batch["labels"] != -100).numpy()
    assert np.abs(chosen.mean(0) - theirs.mean(0)).max() < 0.037
    # How often two tokens are hidden together says what a word is.
    together = [(hidden.T.astype(float) @ hidden) / trials for hidden in (chosen, theirs)]
    assert np.abs(together[0] - together[1]).max() < 0.037
    inputs = batch["input_ids"].numpy()
    assert (seen == ids)[chosen].mean() == pytest.approx((inputs == batch["labels"].numpy())[theirs].mean(), abs=0.03)
    mask = tokenizer.mask_token_id
    assert (seen == mask)[chosen].mean() == pytest.approx((inputs == mask)[theirs].mean(), abs=0.03)


def test_the_same_seed_hides_the_same():
    first, again = (
        mask_words(
            np.arange(50, dtype=np.int32), np.arange(50), np.random.default_rng([1, 2, 3]), mask_id=4, vocabulary=9
        )
        for _ in range(2)
    )
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()


@pytest.mark.parametrize("length", [2, 3, 7, 20, 100, 512])
def test_spans_have_t5s_number_and_places(length: int):
    noise = min(max(round(length * 0.15), 1), length - 1)
    for seed in range(50):
        spans = noise_spans(length, np.random.default_rng(seed))
        assert sum(end - start for start, end in spans) == noise
        assert len(spans) == max(1, round(noise / 3.0))
        assert spans[0][0] > 0 and spans[-1][1] == length
        assert all(start < end for start, end in spans) and all(one[1] < two[0] for one, two in pairwise(spans))
    assert noise_spans(1, np.random.default_rng(0)) == []


def reference_mask(length: int, rng: np.random.Generator, density: float = 0.15, mean: float = 3.0) -> list[bool]:
    """T5's random_spans_noise_mask, from its description: shuffled segment starts, kept and hidden in turn."""
    noise = int(min(max(np.round(length * density), 1), length - 1))
    spans = int(max(np.round(noise / mean), 1))

    def segments(items: int) -> list[int]:
        starts = np.arange(items - 1) < spans - 1
        rng.shuffle(starts)
        ids = np.cumsum(np.concatenate([[0], starts]))
        return np.bincount(ids, minlength=spans).tolist()

    hidden, kept = segments(noise), segments(length - noise)
    pieces = [(size, flag) for pair in zip(kept, hidden, strict=True) for size, flag in zip(pair, (0, 1), strict=True)]
    return [flag == 1 for size, flag in pieces for _ in range(size)]


def test_spans_have_the_distribution_of_t5s_reference():
    length, trials = 40, 6000
    ours, theirs = np.zeros(length), np.zeros(length)
    sizes: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    for trial in range(trials):
        mask = np.zeros(length)
        for start, end in noise_spans(length, np.random.default_rng([trial, 0])):
            mask[start:end] = 1
            sizes[0][end - start] += 1
        ours += mask
        other = np.array(reference_mask(length, np.random.default_rng([trial, 1])))
        theirs += other
        edges = np.flatnonzero(np.diff(np.concatenate([[0], other, [0]])))
        sizes[1].update((edges[1::2] - edges[::2]).tolist())
    assert np.abs(ours - theirs).max() / trials < 0.03
    assert all(abs(sizes[0][size] - sizes[1][size]) < 0.04 * sum(sizes[0].values()) for size in range(1, 6))


def test_source_and_target_have_t5s_format():
    ids = np.array([10, 11, 12, 13, 14, 15, 16], dtype=np.int32)
    source, target = hide_spans(ids, [(1, 3), (5, 7)], [99, 98, 97], end=1)
    assert source.tolist() == [10, 99, 13, 14, 98, 1]
    assert target.tolist() == [99, 11, 12, 98, 15, 16, 1]


def test_pieces_fill_the_models_sequence():
    # What T5's own compute_input_and_target_lengths gives for 512.
    assert source_length(512) == (568, 114)
    tokens, longest = source_length(128)
    for seed in range(20):
        source, target = hide_spans(
            np.arange(tokens, dtype=np.int32), noise_spans(tokens, np.random.default_rng(seed)), range(900, 1000), 1
        )
        assert len(source) == 128 or len(source) == 127
        assert len(target) == longest
