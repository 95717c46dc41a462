"""What random weights cannot show: with trained ones, attention looks at words and probabilities are far from even.

The bundled model on real sentences: packing, splitting and adapters must not change what it thinks.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.base.records import Chat, Message, Text, Where
from luthier.data.batch import Group, collate
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.step import begin
from luthier.generate.config import SamplingConfig
from luthier.generate.local import Local
from luthier.model import methods
from luthier.model.causal import Model
from luthier.model.config import Lora, ModelConfig
from luthier.model.load import load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language

# PEFT asks transformers for this by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

HERE = Where("sentences", 1)
TEXTS = [
    "The old woman opened the door and looked at the boy, who was standing in the rain with his dog.",
    "春天来了，草地绿了，孩子们在公园里放风筝，老人坐在树下聊天。",
    "She said that she did not know.",
    "北京是中国的首都，有很多古老的建筑。",
]
CHATS = [
    [("Name three fruits.", "Apple, pear and banana."), ("And three tools?", "Hammer, saw and ruler.")],
    [("小提琴有几根弦？", "小提琴有四根弦。")],
    [("What is a flute?", "A flute is a tube with holes.")],
]


@pytest.fixture
def opened(nano_dir: Path) -> tuple[Model, Language]:
    config = ModelConfig(path=str(nano_dir), dtype="float32")
    tokenizer = load_tokenizer(config)
    model = load_model(config, torch.device("cpu"), tokenizer=tokenizer, trained=True)
    return model, Language(Sft(), Renderer(tokenizer))


def groups(objective: Language) -> list[Group]:
    records = [Text(text, HERE) for text in TEXTS]
    for turns in CHATS:
        said = [message for ask, answer in turns for message in (Message("user", ask), Message("assistant", answer))]
        records.append(Chat(tuple(said), HERE))  # type: ignore[arg-type]
    return [group for record in records if (group := objective.encode(record)) is not None]


def test_packed_sentences_are_judged_as_plain_transformers_judges_each(opened: tuple[Model, Language], nano_dir: Path):
    model, objective = opened
    samples = groups(objective)
    methods.apply(model, Lora(rank=2))
    batch = collate(samples, range(len(samples)))
    with torch.no_grad():
        logprobs_T, correct_T = model.logprobs(batch)
    plain = AutoModelForCausalLM.from_pretrained(nano_dir, dtype=torch.float32)
    likely = 0
    for start, sample in zip(batch.offsets, samples, strict=False):
        ids = torch.from_numpy(sample.sequences[0].ids).long()
        weights = torch.from_numpy(sample.sequences[0].weights)[1:] != 0
        with torch.no_grad():
            rows: Tensor = plain(ids[None]).logits[0, :-1].log_softmax(-1)
        expected = rows.gather(1, ids[1:, None])[:, 0]
        found = logprobs_T[start : start + len(ids) - 1]
        assert torch.allclose(found[weights], expected[weights], atol=2e-4)
        likely += int(correct_T[start : start + len(ids) - 1].sum())
    assert likely > 10, "a trained model is often right"


def test_splits_of_a_step_give_one_gradient(opened: tuple[Model, Language]):
    model, objective = opened
    samples = groups(objective)
    methods.apply(model, Lora(rank=4))
    found: list[tuple[float, float]] = []
    for cut in ([list(range(len(samples)))], [[0, 5], [1, 2, 3], [4], [6]], [[n] for n in range(len(samples))]):
        for weight in model.trained().values():
            weight.grad = None
        step = [collate([samples[n] for n in part], part) for part in cut]
        result = begin(model, objective, step, Mesh(torch.device("cpu")), max_norm=0.0).read()
        found.append((result.loss, result.grad_norm))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)


def test_answers_are_those_of_plain_transformers_and_peft(
    opened: tuple[Model, Language], nano_dir: Path, tmp_path: Path
):
    model, objective = opened
    methods.apply(model, Lora(rank=4))
    for name, weight in model.trained().items():
        weight.data = 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    methods.save(model, tmp_path)
    renderer = objective.renderer
    questions = [ask for turns in CHATS for ask, _ in turns]
    prompts = [renderer.prompt([Message("user", question)]) for question in questions]
    ours = Local(model, stop_ids=renderer.stop_ids).generate(prompts, SamplingConfig(max_new_tokens=24))

    plain = AutoModelForCausalLM.from_pretrained(nano_dir, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for question, answer in zip(questions, ours, strict=True):
        chat = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = adapted.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True)
