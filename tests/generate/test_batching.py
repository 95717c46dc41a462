"""Many answers in the steps of one model: none depends on its company."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.base.errors import DataError, ModelError
from luthier.generate.batching import Batching
from luthier.generate.config import SamplingConfig
from luthier.generate.continuous import Continuous
from luthier.generate.request import Form, Piece, Request, Ticket
from luthier.generate.sampler import Completion
from luthier.model import methods
from luthier.model.config import Lora, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer

PROMPTS = [
    (5, 80, 33, 7),
    (300, 12, 12, 90, 41, 200, 17, 8, 9),
    (17,),
    tuple(range(20, 60)),
    (44, 45, 46, 47, 48),
    (5, 80, 33, 7, 9, 9),
]
GREEDY = SamplingConfig(max_new_tokens=14)
SAMPLED = SamplingConfig(max_new_tokens=14, temperature=1.0, top_p=0.9, top_k=40, seed=3)


def loaded(folder: Path) -> Model:
    config = ModelConfig(path=str(folder))
    return load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)


def by_generate(model: Model, prompt: Sequence[int], tokens: int = 14) -> tuple[int, ...]:
    network: Any = model.network
    ids = torch.tensor([prompt])
    out = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return tuple(out[0, len(prompt) :].tolist())


def run(batching: Batching, requests: Sequence[Request], late: int = 0) -> list[Completion]:
    """Answers; the last `late` requests come one by one between the steps of the others."""
    pieces: list[list[Piece | Exception]] = [[] for _ in requests]
    tickets = [Ticket(request, pieces[n].append) for n, request in enumerate(requests)]
    first = len(tickets) - late
    for ticket in tickets[:first]:
        batching.add(ticket)
    waiting = tickets[first:]
    while batching.running or batching.waiting or waiting:
        batching.step()
        if waiting:
            batching.add(waiting.pop(0))
    for given in pieces:
        for piece in given:
            if isinstance(piece, Exception):
                raise piece
    return [Completion.of([piece for piece in given if isinstance(piece, Piece)]) for given in pieces]


def save_adapter(base: Path, folder: Path, seed: int, **settings: Any) -> Path:
    model = loaded(base)
    methods.apply(model, Lora(rank=4, **settings))
    generator = torch.Generator().manual_seed(seed)
    for weight in model.trained().values():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.3
    methods.save(model, folder)
    return folder


@pytest.mark.parametrize("shape", ["qwen2", "qwen3", "llama", "mistral", "phi3", "granite", "gemma3", "cohere"])
def test_greedy_answers_are_those_of_generate_one_by_one(shape: str, tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir(shape))
    alone = [by_generate(model, prompt) for prompt in PROMPTS]
    for slots, chunk, late in ((6, 512, 0), (2, 3, 0), (4, 16, 3)):
        batching = Batching(model, stop_ids={2}, slots=slots, chunk=chunk)
        answers = run(batching, [Request(prompt, GREEDY) for prompt in PROMPTS], late)
        assert [answer.ids for answer in answers] == alone


def test_too_little_memory_changes_no_answer(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2", max_position_embeddings=2048))
    long = GREEDY.model_copy(update={"max_new_tokens": 300})
    alone = [by_generate(model, prompt, 300) for prompt in PROMPTS[:3]]
    batching = Batching(model, stop_ids={2}, slots=3, cache_tokens=1024)
    steps, lanes = 0, set[int]()
    pieces: list[list[Any]] = [[], [], []]
    for n in range(3):
        batching.add(Ticket(Request(PROMPTS[n], long), pieces[n].append))
    while batching.running or batching.waiting:
        batching.step()
        steps += 1
        lanes.add(batching.running)
        assert batching.lane_tokens <= 1024
    assert [Completion.of(given).ids for given in pieces] == alone
    assert {2, 3} <= lanes and steps > 300  # one had to give its lane away, and to wait


def test_a_sampled_answer_is_the_same_alone_and_in_company(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    penalised = SAMPLED.model_copy(
        update={"presence_penalty": 1.0, "frequency_penalty": 0.5, "min_p": 0.02, "top_p": 1.0}
    )
    asked = [
        Request(prompt, how.model_copy(update={"seed": n}))
        for n, prompt in enumerate(PROMPTS)
        for how in (SAMPLED, penalised, GREEDY)
    ]
    alone = [run(Batching(model, stop_ids={2}), [request])[0] for request in asked]
    assert run(Batching(model, stop_ids={2}, slots=5), asked, late=6) == alone
    other = replace(asked[0], sampling=SAMPLED.model_copy(update={"seed": 99}))
    assert run(Batching(model, stop_ids={2}), [other])[0] != alone[0]


def test_draws_follow_the_distribution_they_are_asked_for(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    with torch.no_grad():
        logits_V = model.base(torch.tensor([PROMPTS[0]])).logits[0, -1]
    seeds = range(600)

    def drawn(**how: Any) -> torch.Tensor:
        settings = SamplingConfig(max_new_tokens=1, temperature=0.7, **how)
        asked = [Request(PROMPTS[0], settings.model_copy(update={"seed": seed})) for seed in seeds]
        tokens = [answer.ids[0] for answer in run(Batching(model, stop_ids=(), slots=64), asked)]
        return torch.bincount(torch.tensor(tokens), minlength=len(logits_V)) / len(seeds)

    probs_V = (logits_V / 0.7).softmax(-1)
    for how in ({}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.3}):
        allowed_V = torch.ones_like(probs_V, dtype=torch.bool)
        order = probs_V.argsort(descending=True)
        if "top_k" in how:
            allowed_V[order[5:]] = False
        if "top_p" in how:
            before_V = probs_V[order].cumsum(-1) - probs_V[order]
            allowed_V[order[before_V >= 0.5]] = False
        if "min_p" in how:
            allowed_V = probs_V >= 0.3 * probs_V.max()
        expected_V = probs_V.where(allowed_V, torch.zeros(())) / probs_V[allowed_V].sum()
        found_V = drawn(**how)
        assert not found_V[~allowed_V].any()
        assert float((found_V - expected_V).abs().sum()) < 0.35 + 0.1 * (not how)


def test_penalties_are_those_of_their_definitions(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    network: Any = model.network
    ids = torch.tensor([PROMPTS[1]])
    expected = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=14, do_sample=False, repetition_penalty=1.7)  # noqa: E501  # fmt: skip
    repeated = GREEDY.model_copy(update={"repetition_penalty": 1.7})
    assert run(Batching(model, stop_ids={2}), [Request(PROMPTS[1], repeated)])[0].ids == tuple(expected[0, 9:].tolist())
    plain = run(Batching(model, stop_ids=()), [Request(PROMPTS[2], GREEDY)])[0].ids
    punished = GREEDY.model_copy(update={"presence_penalty": 2.0, "frequency_penalty": 2.0, "max_new_tokens": 30})
    kept = run(Batching(model, stop_ids=()), [Request(PROMPTS[2], punished)])[0].ids
    counts_V = torch.zeros(model.vocabulary)
    sequence = list(PROMPTS[2])
    for token in kept:
        with torch.no_grad():
            logits_V = model.base(torch.tensor([sequence])).logits[0, -1]
        assert token == int((logits_V - 2.0 * counts_V - 2.0 * (counts_V > 0)).argmax())
        counts_V[token] += 1
        sequence.append(token)
    assert plain != kept[:14]


def test_logprobs_are_the_models_own(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    pieces: list[Any] = []
    batching = Batching(model, stop_ids={2})
    batching.add(Ticket(Request(PROMPTS[0], SAMPLED, logprobs=3), pieces.append))
    batching.add(Ticket(Request(PROMPTS[1], GREEDY), lambda piece: None))
    while batching.running or batching.waiting:
        batching.step()
    ids = [token for piece in pieces for token in piece.ids]
    with torch.no_grad():
        logits_LV = model.base(torch.tensor([[*PROMPTS[0], *ids]])).logits[0]
    for n, score in enumerate(score for piece in pieces for score in piece.scores):
        own_V = logits_LV[len(PROMPTS[0]) - 1 + n].log_softmax(-1)
        assert score.token == ids[n] and score.logprob == pytest.approx(float(own_V[ids[n]]), abs=1e-4)
        assert [token for token, _ in score.likeliest] == own_V.topk(3).indices.tolist()


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("llama"))
    batching = Batching(model, stop_ids=(), slots=2)
    first = run(batching, [Request(PROMPTS[3], GREEDY)])[0]
    again: list[Any] = []
    longer = (*PROMPTS[3], *first.ids, 7, 8)
    batching.add(Ticket(Request(longer, GREEDY), again.append))
    batching.add(Ticket(Request(PROMPTS[3], GREEDY), lambda piece: None))
    while batching.running or batching.waiting:
        batching.step()
    assert again[0].cached == len(PROMPTS[3]) + 13
    assert Completion.of(again).ids == run(Batching(model, stop_ids=()), [Request(longer, GREEDY)])[0].ids


def test_adapters_are_batched_together_and_stay_apart(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2")
    plain = save_adapter(base, tmp_path / "one", 1)
    scaled = save_adapter(base, tmp_path / "two", 2, rslora=True, alpha=8, target=("q_proj", "down_proj"))
    alone: dict[str | None, list[tuple[int, ...]]] = {None: [by_generate(loaded(base), prompt) for prompt in PROMPTS]}
    for name, folder in (("one", plain), ("two", scaled)):
        model = loaded(base)
        methods.attach(model, [str(folder)])
        alone[name] = [by_generate(model, prompt) for prompt in PROMPTS]
    assert len({tuple(answers) for answers in alone.values()}) == 3
    batching = Batching(loaded(base), stop_ids={2}, slots=7)
    batching.adapters["one"] = batching.several.read([str(plain)])
    batching.adapters["two"] = batching.several.read([str(scaled)])
    rows: list[int] = []
    decoder: Any = batching.model.base.get_decoder()
    decoder.register_forward_hook(
        lambda module, args, kwargs, out: rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    asked = [Request(prompt, GREEDY, adapter=name) for prompt in PROMPTS for name in alone]
    found = run(batching, asked, late=5)
    assert [answer.ids for answer in found] == [alone[name][n] for n in range(len(PROMPTS)) for name in alone]
    assert max(rows[-10:]) > 3  # and they shared steps
    batching.forget("one")
    with pytest.raises(DataError, match="no adapter"):
        batching.add(Ticket(asked[1], lambda piece: None))


def test_adapters_trained_over_one_another_add_up(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2")
    folders = [str(save_adapter(base, tmp_path / str(n), n)) for n in (1, 2)]
    model = loaded(base)
    methods.attach(model, folders)
    batching = Batching(loaded(base), stop_ids={2})
    batching.adapters["both"] = batching.several.read(folders)
    found = run(batching, [Request(prompt, GREEDY, adapter="both") for prompt in PROMPTS])
    assert [answer.ids for answer in found] == [by_generate(model, prompt) for prompt in PROMPTS]


def test_adapters_that_cannot_share_a_base_are_refused(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    base = tiny_model_dir("qwen2")
    batching = Batching(loaded(base), stop_ids={2})
    for number, settings in enumerate(({"dora": True}, {"modules_to_save": ("lm_head",)})):
        folder = save_adapter(tiny_model_dir("llama"), tmp_path / str(number), 1, **settings)
        with pytest.raises(ModelError, match="only plain LoRA"):
            batching.several.read([str(folder)])
    wide = save_adapter(tiny_model_dir("qwen2", hidden_size=64), tmp_path / "wide", 1)
    with pytest.raises(ModelError, match="does not fit"):
        batching.several.read([str(wide)])


SCHEMA = {
    "type": "object",
    "properties": {"名字": {"type": "string", "maxLength": 4}, "n": {"enum": [1, 2, 3]}},
    "required": ["名字", "n"],
    "additionalProperties": False,
}


def test_answers_fit_their_form(tiny_model_dir: Callable[..., Path]) -> None:
    pytest.importorskip("llguidance")
    model = loaded(tiny_model_dir("qwen2"))
    forms = [Form("json", json.dumps(SCHEMA)), Form("regex", r"[0-9]{3}-[a-f]{2}"), Form("lark", 'start: "yes" | "no"')]
    how = SamplingConfig(max_new_tokens=60, temperature=1.0)
    asked = [
        Request(PROMPTS[0], how.model_copy(update={"seed": seed}), form=form) for seed in range(5) for form in forms
    ]
    answers = run(Batching(model, stop_ids={2}), [*asked, Request(PROMPTS[1], GREEDY)])
    for n, answer in enumerate(answers[:-1]):
        assert answer.finish_reason == "stop"
        if n % 3 == 0:
            value = json.loads(answer.text)
            assert set(value) == {"名字", "n"} and len(value["名字"]) <= 4 and value["n"] in (1, 2, 3)
        else:
            assert re.fullmatch((r"[0-9]{3}-[a-f]{2}", "yes|no")[n % 3 - 1], answer.text)
    assert answers[-1].ids == by_generate(model, PROMPTS[1])
    for form in (Form("json", '{"type": "nothing"}'), Form("json", "{"), Form("regex", "[a"), Form("lark", "start")):
        with pytest.raises(DataError) as caught:
            Batching(model, stop_ids={2}).add(Ticket(Request((5,), GREEDY, form=form), lambda piece: None))
        assert caught.value.code == "bad_form"


def test_a_cancelled_answer_leaves_its_lane(tiny_model_dir: Callable[..., Path]) -> None:
    batching = Batching(loaded(tiny_model_dir("qwen2")), stop_ids=(), slots=2)
    pieces: list[list[Any]] = [[], [], []]
    tickets = [Ticket(Request(PROMPTS[n], GREEDY), pieces[n].append) for n in range(3)]
    for ticket in tickets:
        batching.add(ticket)
    batching.step()
    assert (batching.running, batching.waiting) == (2, 1)
    tickets[0].cancelled = True
    batching.step()
    assert (batching.running, batching.waiting) == (2, 0)
    while batching.running:
        batching.step()
    assert len(pieces[0]) == 1 and [len(Completion.of(given).ids) for given in pieces[1:]] == [14, 14]


def test_a_thread_answers_many_and_survives_what_breaks(tiny_model_dir: Callable[..., Path]) -> None:
    model = loaded(tiny_model_dir("qwen2"))
    alone = [by_generate(model, prompt) for prompt in PROMPTS]
    generator = Continuous(model, stop_ids={2}, slots=3)
    assert [answer.ids for answer in generator.generate(PROMPTS, GREEDY)] == alone
    asked = ((n, Request(prompt, GREEDY)) for n, prompt in [*enumerate(PROMPTS), (9, (4,) * 128)])
    found = dict(generator.answers(asked))
    assert isinstance(found.pop(9), DataError)
    assert {n: answer.ids for n, answer in found.items() if isinstance(answer, Completion)} == dict(enumerate(alone))
    assert "".join(generator.stream(PROMPTS[0], GREEDY)) == generator.generate(PROMPTS[:1], GREEDY)[0].text
    stream = generator.stream(PROMPTS[0], SamplingConfig(max_new_tokens=100))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    handle = model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.generate(PROMPTS, GREEDY)
    handle.remove()
    assert [answer.ids for answer in generator.generate(PROMPTS, GREEDY)] == alone
    generator.close()


def test_text_of_many_tokens_a_character_is_never_broken(nano_dir: Path) -> None:
    model = loaded(nano_dir)
    text = "小提琴🎻的面板是云杉，背板是枫木。é ñ 한국어 ——“引号”"
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    forced = iter(ids)
    batching = Batching(model, stop_ids={2})
    pieces: list[Any] = []
    batching.add(Ticket(Request((5, 6), SamplingConfig(max_new_tokens=len(ids))), pieces.append))
    batching.model.head.register_forward_hook(
        lambda module, args, out: torch.nn.functional.one_hot(torch.tensor([next(forced)]), out.shape[-1]).float()
    )
    while batching.running or batching.waiting:
        batching.step()
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces) and len(pieces) == len(ids) > len(text) * 0.7
