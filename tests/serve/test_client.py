"""The unmodified OpenAI client against the server, on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("llguidance")

import torch  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from serving import Kitchen, Listening  # noqa: E402

from luthier.base.records import Message  # noqa: E402
from luthier.generate.config import SamplingConfig  # noqa: E402
from luthier.generate.local import Local  # noqa: E402
from luthier.model import methods  # noqa: E402
from luthier.model.config import Lora, ModelConfig  # noqa: E402
from luthier.model.load import load_model, load_tokenizer  # noqa: E402

QUESTION: list[Any] = [{"role": "user", "content": "你叫什么名字？"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "tune",
            "description": "Tune a string.",
            "parameters": {
                "type": "object",
                "properties": {"string": {"enum": ["G", "D", "A", "E"]}, "hertz": {"enum": [440, 442]}},
                "required": ["string", "hertz"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def kitchen(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    base, folder = tiny_model_dir("qwen2", max_position_embeddings=512), tmp_path_factory.mktemp("adapters")
    config = ModelConfig(path=str(base))
    for seed, name in enumerate(("poet", "lawyer")):
        model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=False)
        methods.apply(model, Lora(rank=4))
        for weight in model.trained().values():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3
        methods.save(model, folder / name)
    made = Kitchen(base, {"poet": folder / "poet", "lawyer": folder / "lawyer"})
    from luthier.data.render import Renderer
    from luthier.serve.voices import Voice

    # The tiny tokenizer's own template knows no tools.
    with_tools = Renderer(made.renderer.tokenizer, template="chatml")
    made.voices._loaded["tools"] = Voice(with_tools)
    return made


@pytest.fixture(scope="module")
def served(kitchen: Kitchen) -> Iterator[Listening]:
    with Listening(kitchen.app()) as listening:
        yield listening


@pytest.fixture(scope="module")
def client(served: Listening) -> Iterator[Any]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as made:
        yield made


def expected(kitchen: Kitchen, tokens: int = 12) -> str:
    prompt = kitchen.renderer.prompt([Message("user", QUESTION[0]["content"])])
    sampler = Local(kitchen.model, stop_ids=kitchen.renderer.stop_ids)
    return sampler.generate([prompt], SamplingConfig(max_new_tokens=tokens))[0].text


def test_a_chat_whole_and_streamed(client: Any, kitchen: Kitchen) -> None:
    assert next(model.id for model in client.models.list()) == "tiny"
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    answer = client.chat.completions.create(**ask)
    assert answer.choices[0].message.content == expected(kitchen)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(kitchen.renderer.prompt([Message("user", QUESTION[0]["content"])]))
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == expected(kitchen) and len(chunks) > 4
    assert chunks[-2].choices[0].finish_reason == "length" and chunks[-1].usage == answer.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    stopped = client.chat.completions.create(**ask, stop=[expected(kitchen)[3:5]])
    assert stopped.choices[0].message.content == expected(kitchen)[:3] and stopped.choices[0].finish_reason == "stop"


def test_seeds_choices_and_many_at_once(client: Any, served: Listening) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 10, "temperature": 1.0}
    first = client.chat.completions.create(**ask, seed=7, n=3)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) == 3 and [choice.index for choice in first.choices] == [0, 1, 2]
    unseeded = {client.chat.completions.create(**ask).choices[0].message.content for _ in range(3)}
    assert len(unseeded) == 3

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as asking:
            answers = await asyncio.gather(*(asking.chat.completions.create(**ask, seed=7 + n % 3) for n in range(12)))
            streamed: dict[int, str] = {0: "", 1: "", 2: ""}
            async for chunk in await asking.chat.completions.create(**ask, seed=7, n=3, stream=True):
                streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert list(streamed.values()) == texts
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(together()) == texts * 4


def test_logprobs(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "temperature": 0, "logprobs": True}
    answer = client.chat.completions.create(**ask, top_logprobs=2).choices[0]
    scores = answer.logprobs.content
    assert len(scores) == 8 and all(score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)
    assert all(score.top_logprobs[0].token == score.token for score in scores)
    spelt = b"".join(bytes(score.bytes) for score in scores)
    assert spelt.decode(errors="replace").rstrip("\ufffd").startswith(answer.message.content.rstrip("\ufffd")[:4])
    streamed = [
        score
        for chunk in client.chat.completions.create(**ask, top_logprobs=2, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for score in chunk.choices[0].logprobs.content
    ]
    assert [score.token for score in streamed] == [score.token for score in scores]
    text = client.completions.create(
        model="tiny", prompt=["The violin", "你叫"], max_tokens=5, temperature=0, logprobs=1
    )
    assert [choice.index for choice in text.choices] == [0, 1]
    assert len(text.choices[1].logprobs.tokens) == 5 and text.choices[0].logprobs.text_offset[0] == 0


ECHOED = ["The violin maker planes", "你叫什么名字？😀 naïve"]


@pytest.fixture
def adapters(client: Any) -> Iterator[None]:
    for name in ("poet", "lawyer"):
        client.post("/adapters", cast_to=object, body={"name": name})
    yield
    for name in ("poet", "lawyer"):
        client.delete(f"/adapters/{name}", cast_to=object)


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("adapter", ["tiny", "poet"])
def test_a_prompt_is_told_with_how_likely_it_was(adapter: str, client: Any, kitchen: Kitchen) -> None:
    ask: dict[str, Any] = {"model": adapter, "prompt": ECHOED, "temperature": 0, "echo": True, "logprobs": 2}
    alone = client.completions.create(**ask, max_tokens=0)
    assert [choice.text for choice in alone.choices] == ECHOED
    assert {choice.finish_reason for choice in alone.choices} == {"length"}
    assert alone.usage.completion_tokens == 0
    plain = {"model": adapter, "prompt": ECHOED, "temperature": 0, "max_tokens": 3, "logprobs": 2}
    answers = client.completions.create(**plain)
    both = client.completions.create(**ask, max_tokens=3)
    chunks = list(client.completions.create(**ask, max_tokens=3, stream=True))
    for number, prompt in enumerate(ECHOED):
        told, ids = alone.choices[number].logprobs, kitchen.renderer.tokenizer(prompt)["input_ids"]
        assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
        assert len(told.tokens) == len(told.token_logprobs) == len(told.text_offset) == len(ids)
        places = kitchen.renderer.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        assert told.text_offset == [start for start, _ in places]
        if adapter == "tiny":
            with torch.no_grad():
                scores = kitchen.model.base(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            expected = scores.gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
            assert told.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
            assert [max(top.values()) for top in told.top_logprobs[1:]] == pytest.approx(
                scores.max(-1).values.tolist(), abs=1e-4
            )
        answer, whole = answers.choices[number], both.choices[number]
        assert whole.text == prompt + answer.text
        assert whole.logprobs.tokens == told.tokens + answer.logprobs.tokens
        assert whole.logprobs.token_logprobs[: len(ids)] == told.token_logprobs
        behind = [len(prompt) + place for place in answer.logprobs.text_offset]
        assert whole.logprobs.text_offset == told.text_offset + behind
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == number]
        assert "".join(part.text for part in mine) == whole.text
        streamed = [place for part in mine if part.logprobs for place in part.logprobs.text_offset]
        assert streamed == whole.logprobs.text_offset


@pytest.mark.usefixtures("adapters")
def test_an_adapter_is_heard_in_what_it_makes_of_a_prompt(client: Any) -> None:
    ask: dict[str, Any] = {"prompt": ECHOED[0], "echo": True, "logprobs": 0, "max_tokens": 0}
    found = [client.completions.create(model=name, **ask).choices[0].logprobs for name in ("tiny", "poet", "lawyer")]
    assert len({tuple(one.token_logprobs) for one in found}) == 3
    assert found[0].top_logprobs is None


def test_a_prompt_is_told_for_each_choice_and_without_numbers_where_none_are_wanted(
    client: Any, kitchen: Kitchen
) -> None:
    ids = kitchen.renderer.tokenizer(ECHOED[0])["input_ids"]
    found = client.completions.create(model="tiny", prompt=ids, echo=True, max_tokens=2, n=3, temperature=1, seed=1)
    assert all(choice.text.startswith(ECHOED[0]) and choice.logprobs is None for choice in found.choices)
    assert len(found.choices) == 3 and found.usage.prompt_tokens == len(ids) and found.usage.completion_tokens <= 6


def test_control_tokens_sent_as_ids_are_told(client: Any, kitchen: Kitchen) -> None:
    tokenizer = kitchen.renderer.tokenizer
    ids = [*tokenizer("<|im_start|>user")["input_ids"], *tokenizer("\n你好")["input_ids"]]
    found = client.completions.create(model="tiny", prompt=ids, echo=True, max_tokens=0, logprobs=1).choices[0]
    assert found.text == "<|im_start|>user\n你好"
    assert found.logprobs.tokens[0] == "<|im_start|>" and found.logprobs.text_offset[1] == len("<|im_start|>")


class Violin(BaseModel):
    maker: Literal["Stradivari", "制琴师"]
    strings: Literal[4, 5]


def test_biases_change_the_choice_and_not_the_probabilities(client: Any, kitchen: Kitchen) -> None:
    wanted = kitchen.renderer.tokenizer("violin")["input_ids"][0]
    settings: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 3, "logprobs": True, "top_logprobs": 1}
    found = client.chat.completions.create(**settings, temperature=1, logit_bias={str(wanted): 100})
    text = kitchen.renderer.tokenizer.decode([wanted] * 3)
    assert found.choices[0].message.content == text
    assert all(one.logprob < one.top_logprobs[0].logprob for one in found.choices[0].logprobs.content)
    other = kitchen.renderer.tokenizer("maker")["input_ids"][0]
    for bias, chosen in (({wanted: 90, other: 100}, other), ({wanted: 90, other: -100}, wanted)):
        biases = {str(token): value for token, value in bias.items()}
        found = client.completions.create(model="tiny", prompt="The", max_tokens=1, temperature=0, logit_bias=biases)
        assert found.choices[0].text == kitchen.renderer.tokenizer.decode([chosen])
    for bias in ({"99999999": 1}, {"x": 1}, {"-1": 1}, {"1": 101}):
        with pytest.raises(openai.BadRequestError, match="logit_bias"):
            client.chat.completions.create(**settings, logit_bias=bias)


def test_thoughts_are_told_apart(client: Any, kitchen: Kitchen) -> None:
    settings: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 60}
    more: Any = {"guided_regex": r"<think>\nwood rings\n</think>\n\nviolin"}
    message = client.chat.completions.create(**settings, extra_body=more).choices[0].message
    assert (message.reasoning_content, message.content) == ("wood rings", "violin")
    stream = client.chat.completions.create(**settings, extra_body=more, stream=True)
    deltas = [chunk.choices[0].delta for chunk in stream]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "wood rings"
    assert "".join(delta.content or "" for delta in deltas) == "violin"
    silent = {**more, "include_reasoning": False, "chat_template_kwargs": {"enable_thinking": False}}
    bare = client.chat.completions.create(**settings, extra_body=silent).choices[0].message
    assert bare.content == "violin" and not hasattr(bare, "reasoning_content")
    with (
        Listening(kitchen.app(reasoning=False)) as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as plain,
    ):
        message = plain.chat.completions.create(**settings, extra_body=more).choices[0].message
    assert message.content == "<think>\nwood rings\n</think>\n\nviolin"


def test_answers_with_a_schema(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 80}
    parsed = client.chat.completions.parse(**ask, response_format=Violin).choices[0].message.parsed
    assert isinstance(parsed, Violin)
    schema = {**Violin.model_json_schema(), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "v", "strict": True, "schema": schema}}
    streamed = client.chat.completions.create(**ask, response_format=form, stream=True)
    assert Violin.model_validate_json("".join(chunk.choices[0].delta.content or "" for chunk in streamed))
    chosen = (
        client.chat.completions.create(**ask, extra_body={"guided_choice": ["yes", "不"]}).choices[0].message.content
    )
    assert chosen in ("yes", "不")
    number = client.completions.create(model="tiny", prompt="x", extra_body={"guided_regex": "[0-9]{3}"})
    assert number.choices[0].text.isdecimal() and len(number.choices[0].text) == 3


def test_tools(client: Any) -> None:
    ask: dict[str, Any] = {"model": "tools", "messages": QUESTION, "tools": TOOLS, "max_tokens": 120}
    answer = client.chat.completions.create(**ask, tool_choice="required").choices[0]
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    call = answer.message.tool_calls[0]
    assert call.function.name == "tune" and set(json.loads(call.function.arguments)) == {"string", "hertz"}
    named = {"type": "function", "function": {"name": "tune"}}
    chunks = list(client.chat.completions.create(**ask, tool_choice=named, stream=True))
    told = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in told] == ["tune"] and chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    result = [
        *QUESTION,
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "in tune"},
    ]
    again = client.chat.completions.create(model="tools", messages=result, tools=TOOLS, max_tokens=5)
    assert again.usage.prompt_tokens > 60
    with pytest.raises(openai.BadRequestError, match="tool calls that can be forced"):
        client.chat.completions.create(**{**ask, "model": "tiny"}, tool_choice="required")


def test_a_forced_call_has_the_arguments_that_are_listed(client: Any) -> None:
    (tool,) = json.loads(json.dumps(TOOLS))
    tool["function"]["parameters"].pop("additionalProperties", None)
    for seed in range(4):
        answer = client.chat.completions.create(
            model="tools", messages=QUESTION, tools=[tool], tool_choice="required", max_tokens=120, seed=seed
        ).choices[0]
        (call,) = answer.message.tool_calls
        assert set(json.loads(call.function.arguments)) <= set(tool["function"]["parameters"]["properties"])


def test_adapters_come_and_go_by_name(client: Any, kitchen: Kitchen) -> None:
    ask: dict[str, Any] = {"messages": QUESTION, "max_tokens": 12, "temperature": 0}

    def names() -> set[str]:
        return {model.id for model in client.models.list()}

    with pytest.raises(openai.NotFoundError, match="no model 'poet'"):
        client.chat.completions.create(model="poet", **ask)
    for name in ("poet", "lawyer", "poet"):
        assert client.post("/adapters", cast_to=object, body={"name": name}) == {"name": name, "loaded": True}
    assert {"poet", "lawyer"} < names()
    texts = {
        client.chat.completions.create(model=name, **ask).choices[0].message.content
        for name in ("tiny", "poet", "lawyer")
    }
    assert len(texts) == 3 and expected(kitchen) in texts
    vectors = [client.embeddings.create(model=name, input="violin").data[0].embedding for name in ("tiny", "poet")]
    assert vectors[0] != vectors[1]
    client.delete("/adapters/poet", cast_to=object)
    assert "poet" not in names() and "lawyer" in names()
    for name in ("/etc", "../poet", "poet/..", "unknown"):
        with pytest.raises(openai.NotFoundError):
            client.post("/adapters", cast_to=object, body={"name": name})


def test_one_model_is_told_by_its_name(client: Any) -> None:
    listed = client.models.list().data[0]
    assert client.models.retrieve("tiny") == listed
    for name in ("gpt-9", "some/model"):
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve(name)
        assert caught.value.code == "model_not_found" and name in str(caught.value)


def test_embeddings_and_likeness(client: Any) -> None:
    texts = ["The violin maker", "制琴师", "Numbers: 1 2 3", "The violin maker"]
    found = client.embeddings.create(model="tiny", input=texts)
    vectors = torch.tensor([row.embedding for row in found.data])
    assert torch.allclose(vectors.norm(dim=1), torch.ones(4), atol=1e-5) and torch.allclose(vectors[0], vectors[3])
    alone = client.embeddings.create(model="tiny", input=texts[1], encoding_format="float").data[0].embedding
    assert torch.allclose(torch.tensor(alone), vectors[1], atol=1e-5)  # company changes nothing
    short = client.embeddings.create(model="tiny", input=texts[1], dimensions=8).data[0].embedding
    assert len(short) == 8 and sum(x * x for x in short) == pytest.approx(1, abs=1e-5)
    ranked: Any = client.post(
        "/rerank", cast_to=object, body={"model": "tiny", "query": texts[0], "documents": texts[1:]}
    )
    assert ranked["results"][0] == {
        "index": 2,
        "relevance_score": pytest.approx(1, abs=1e-5),
        "document": {"text": texts[3]},
    }
    scored: Any = client.post("/score", cast_to=object, body={"model": "tiny", "text_1": texts[0], "text_2": texts})
    assert [round(row["score"], 4) for row in scored["data"]] == pytest.approx(
        (vectors @ vectors[0]).tolist(), abs=1e-3
    )


def test_the_server_renders_as_training_does(client: Any, kitchen: Kitchen) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "Be brief.<|im_end|>"},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two?"}]},
    ]
    told: Any = client.with_options(base_url=str(client.base_url).replace("/v1/", "/")).post(
        "/tokenize", cast_to=object, body={"model": "tiny", "messages": messages}
    )
    from luthier.base.records import Chat, Where

    chat = (Message("system", "Be brief.<|im_end|>"), Message("user", "One two?"), Message("assistant", "Three."))
    trained = kitchen.renderer.chat(Chat(chat, Where("x", 1)), train_on="last")
    first = int((trained.weights > 0).nonzero()[0][0])
    assert told["tokens"] == trained.ids[:first].tolist()
