from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.generate.sampler import Answer
from luthier.model.config import ModelConfig
from luthier.model.load import load_tokenizer

TEXTS = st.text(alphabet="ab 琴龘🎻é\ufffd\n", max_size=20)


def pieces(answer: Answer, ids: list[int]) -> list[str]:
    return [*(answer.feed(token) for token in ids), *([] if answer.finished else [answer.finish()])]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_no_piece_holds_half_a_character(text: str, tiny_model_dir: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir("llama"))))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    got = pieces(Answer(tokenizer, (), ()), ids)
    assert "".join(got) == text
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in got)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS, stop=st.lists(st.text(alphabet="ab 琴\n", min_size=1, max_size=3), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(
    text: str, stop: list[str], tiny_model_dir: Callable[..., Path]
) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir("llama"))))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    answer = Answer(tokenizer, (), stop)
    got = pieces(answer, ids)
    ends = [text.index(word) for word in stop if word in text]
    joined = "".join(got)
    assert text.startswith(joined) and not any(word in joined for word in stop)
    if not ends:
        assert joined == text


def test_stop_token_ends_and_is_not_text(tiny_model_dir: Callable[..., Path]) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model_dir("llama"))))
    ids = tokenizer("制琴师<|im_end|>more").input_ids
    answer = Answer(tokenizer, {tokenizer.eos_token_id}, ())
    assert "".join(pieces(answer, ids)) == "制琴师"
    assert answer.finished
