from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.base.errors import DataError
from luthier.generate.config import SamplingConfig
from luthier.generate.local import Local
from luthier.model.config import ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer

PROMPTS = [[5, 80, 33, 7], [300, 12, 12, 90, 41, 200, 17, 8, 9], [17], [44, 45, 46, 47, 48]]
GREEDY = SamplingConfig(max_new_tokens=12)
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=1.0)


def loaded(folder: Path) -> Model:
    config = ModelConfig(path=str(folder))
    return load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)


@pytest.mark.parametrize("shape", ["qwen2", "mistral", "gemma2", "mamba"])
def test_greedy_answers_do_not_depend_on_the_batch(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir(shape))
    together = Local(model, batch=4).generate(PROMPTS, GREEDY)
    alone = [Local(model).generate([prompt], GREEDY)[0] for prompt in PROMPTS]
    assert together == alone
    assert len({answer.ids for answer in alone}) > 1
    streamed = ["".join(Local(model).stream(prompt, GREEDY)) for prompt in PROMPTS]
    assert streamed == [answer.text for answer in together]


def test_greedy_takes_the_likeliest_token_each_time(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    ids = list(PROMPTS[0])
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model.network(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in Local(model).stop_ids:
            break
    assert Local(model).generate([PROMPTS[0]], GREEDY)[0].ids == tuple(ids[len(PROMPTS[0]) :])


def test_the_models_own_settings_do_not_sneak_in(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    plain = Local(model).generate(PROMPTS, GREEDY)
    own = model.base.generation_config
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty, own.max_length = True, 5.0, 50, 9.0, 3
    assert Local(model).generate(PROMPTS, GREEDY) == plain
    assert model.base.generation_config is own


def test_seeded_sampling_repeats_and_leaves_the_random_state_alone(tiny_model_dir: Callable[..., Path]) -> None:
    sampler = Local(loaded(tiny_model_dir("qwen2")))
    torch.manual_seed(7)
    first = sampler.generate(PROMPTS, SAMPLED)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    assert sampler.generate(PROMPTS, SAMPLED) == first
    assert sampler.generate(PROMPTS, SAMPLED.model_copy(update={"seed": 1})) != first
    assert sampler.generate(PROMPTS, SAMPLED.model_copy(update={"top_k": 1})) == sampler.generate(PROMPTS, GREEDY)


def test_stop_strings_and_stop_tokens_end_an_answer(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    whole = Local(model).generate([PROMPTS[1]], GREEDY)[0]
    assert whole.finish_reason == "length" and len(whole.ids) == 12
    middle = whole.text[4:6]
    stopping = GREEDY.model_copy(update={"stop": (middle,)})
    cut = Local(model).generate([PROMPTS[1]], stopping)[0]
    assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.index(middle)]
    assert "".join(Local(model).stream(PROMPTS[1], stopping)) == cut.text
    token = whole.ids[5]
    ended = Local(model, stop_ids=[token]).generate([PROMPTS[1]], GREEDY)[0]
    assert ended.finish_reason == "stop" and ended.ids == whole.ids[: whole.ids.index(token) + 1]


def test_leaving_a_stream_stops_the_model(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    calls: list[int] = []
    hook = model.head.register_forward_hook(lambda *_: calls.append(1))
    stream = Local(model).stream(PROMPTS[0], SamplingConfig(max_new_tokens=100))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    hook.remove()
    assert len(calls) < 100


def test_answers_end_where_the_context_ends(tiny_model_dir: Callable[..., Path]) -> None:
    sampler = Local(loaded(tiny_model_dir("qwen2", eos_token_id=None)))
    sampler.stop_ids = frozenset()
    assert len(sampler.generate([[9] * 120], SamplingConfig())[0].ids) == 8
    with pytest.raises(DataError, match="128"):
        sampler.generate([[9] * 128], GREEDY)
    with pytest.raises(DataError, match="empty"):
        list(sampler.stream([], GREEDY))


def test_a_model_in_training_stays_in_training(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    model.train_mode(keep="input")
    answers = Local(model).generate(PROMPTS, GREEDY)
    assert model.network.training
    model.eval_mode()
    assert Local(model).generate(PROMPTS, GREEDY) == answers
