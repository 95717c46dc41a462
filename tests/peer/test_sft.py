"""Invariant 5: tokens, masks, loss, gradient and course of SFT equal TRL's SFTTrainer and transformers' own Trainer.

    pip install -e '.[peer]'
    pytest -m peer -n 0 tests/peer

Where a template writes a line break behind the token that ends an answer, TRL's completion-only mask trains it and ours
does not; the completions compared here have none.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from luthier.base.console import Console
from luthier.base.records import Json, Where
from luthier.data.batch import Batch, Group, collate
from luthier.data.formats import read_record
from luthier.data.render import Renderer
from luthier.engine.mesh import Mesh
from luthier.engine.step import StepResult, begin
from luthier.model import methods
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.load import Model, load_model, load_tokenizer
from luthier.objectives.config import Sft
from luthier.objectives.language import Language
from luthier.run.config import RunConfig
from luthier.run.train import train

# Warnings of other people's trainers are not ours to judge.
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(find_spec("trl") is None, reason="needs pip install 'luthier[peer]'"),
    pytest.mark.filterwarnings("ignore"),
]

Row = dict[str, Json]
MICRO, ACCUMULATION = 2, 4
SETTINGS = {
    "per_device_train_batch_size": MICRO,
    "gradient_accumulation_steps": ACCUMULATION,
    "train_sampling_strategy": "sequential",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
ONE_STEP = {"max_steps": 1, "max_grad_norm": 0.0}
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
UNMARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture
def folder(tiny_model_dir: Callable[..., Path]) -> Path:
    return tiny_model_dir("qwen2")


def chats(count: int = MICRO * ACCUMULATION) -> list[Row]:
    """Chats of one to three exchanges and very different lengths."""
    rng = random.Random(0)
    words = ["spruce", "violin", "rings", "12", "maker?", "制琴师", "天气很好", "(brackets)", "name;", "公园\n\nto"]
    rows: list[Row] = []
    for _ in range(count):
        messages: list[Json] = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            messages.append({"role": "user", "content": " ".join(rng.choices(words, k=rng.randint(1, 5)))})
            messages.append({"role": "assistant", "content": " ".join(rng.choices(words, k=rng.randint(1, 8)))})
        rows.append({"messages": messages})
    return rows


def completions() -> list[Row]:
    """The same chats as a prompt and its last answer."""
    return [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in chats()]


@dataclass
class Theirs(TrainerCallback):
    """What one of their trainers did: the weights it began with, the first step's gradient, the loss of every step."""

    start: dict[str, Tensor]
    gradient: dict[str, Tensor]
    trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = {name: copy.deepcopy(w.detach()) for name, w in moving(kwargs["model"]).items()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.gradient = {name: w.grad.clone() for name, w in moving(kwargs["model"]).items() if w.grad is not None}

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.trainer.state.log_history if "loss" in row]


def moving(network: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in network.named_parameters() if weight.requires_grad}


def sft_trainer(folder: Path, template: str, rows: Sequence[Row], out: Path, **changes: Any) -> Theirs:
    """TRL's SFTTrainer after its training."""
    import trl

    seen = Theirs({}, {})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    adapter = changes.pop("peft_config", None)
    seen.trainer = trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa"),
        args=trl.SFTConfig(output_dir=str(out), **{**SETTINGS, **ONE_STEP, "max_length": None, **changes}),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[seen],
    )
    seen.trainer.train()
    return seen


def renderer_of(folder: Path, template: str) -> Renderer:
    return Renderer(load_tokenizer(ModelConfig(path=str(folder))), template=template)


def groups_of(folder: Path, template: str, rows: Sequence[Row]) -> list[Group]:
    objective = Language(Sft(), renderer_of(folder, template))
    made = [objective.encode(read_record(row, Where("rows", number))) for number, row in enumerate(rows, 1)]
    return [group for group in made if group is not None]


def labelled(groups: Sequence[Group]) -> list[dict[str, list[int]]]:
    """Our tokens as rows of theirs: the label of a token is itself where it is trained, else -100."""
    rows: list[dict[str, list[int]]] = []
    for tokens in (group.sequences[0] for group in groups):
        ids = tokens.ids.tolist()
        labels = [token if weight else -100 for token, weight in zip(ids, tokens.weights, strict=True)]
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def our_step(
    folder: Path, method: Method, batches: Sequence[Batch], start: dict[str, Tensor]
) -> tuple[StepResult, Model]:
    config = ModelConfig(path=str(folder))
    model = load_model(config, torch.device("cpu"), tokenizer=load_tokenizer(config), trained=True)
    methods.apply(model, method)
    with torch.no_grad():
        for name, weight in model.trained().items():
            weight.copy_(start[name])
    model.train_mode()
    objective = Language(Sft(), renderer_of(folder, MARKED))
    return begin(model, objective, batches, Mesh(torch.device("cpu")), max_norm=0.0).read(), model


def assert_same_step(folder: Path, method: Method, groups: Sequence[Group], theirs: Theirs) -> None:
    """Loss and gradient to 1e-5, in three cuts of the step."""
    count = len(groups)
    for size in (MICRO, 1, count):
        cuts = [range(at, min(at + size, count)) for at in range(0, count, size)]
        batches = [collate([groups[index] for index in cut], list(cut)) for cut in cuts]
        result, model = our_step(folder, method, batches, theirs.start)
        assert result.loss == pytest.approx(theirs.losses[0], rel=1e-5)
        ours = {name: weight.grad for name, weight in model.trained().items()}
        assert ours.keys() == theirs.gradient.keys()
        whole = torch.cat([gradient.flatten() for gradient in theirs.gradient.values()]).norm()
        assert result.grad_norm == pytest.approx(float(whole), rel=1e-5)
        for name, gradient in theirs.gradient.items():
            mine = ours[name]
            assert mine is not None and (mine - gradient).norm() <= 1e-5 * whole, name


@pytest.mark.parametrize("kind", ["assistant", "completion"])
def test_token_ids_and_masks(kind: str, folder: Path, tmp_path: Path) -> None:
    rows, template = (chats(40), MARKED) if kind == "assistant" else (completions(), UNMARKED)
    theirs = sft_trainer(folder, template, rows, tmp_path, assistant_only_loss=kind == "assistant")
    ours = groups_of(folder, template, rows)
    assert len(ours) == len(theirs.trainer.train_dataset) == len(rows)
    for group, row in zip(ours, theirs.trainer.train_dataset, strict=True):
        tokens = group.sequences[0]
        assert tokens.ids.tolist() == row["input_ids"]
        assert (tokens.weights != 0).tolist() == [label != -100 for label in row["labels"]]


@pytest.mark.parametrize("padding_free", [False, True])
def test_step_on_the_assistants_tokens(padding_free: bool, folder: Path, tmp_path: Path) -> None:
    changes = {"assistant_only_loss": True, "padding_free": padding_free}
    theirs = sft_trainer(folder, MARKED, chats(), tmp_path, **changes)
    assert_same_step(folder, Full(), groups_of(folder, MARKED, chats()), theirs)


def test_step_on_completions(folder: Path, tmp_path: Path) -> None:
    theirs = sft_trainer(folder, UNMARKED, completions(), tmp_path)
    assert_same_step(folder, Full(), groups_of(folder, UNMARKED, completions()), theirs)


def test_step_with_lora(folder: Path, tmp_path: Path) -> None:
    adapter = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")
    theirs = sft_trainer(folder, MARKED, chats(), tmp_path, assistant_only_loss=True, peft_config=adapter)
    assert_same_step(folder, Lora(rank=4, alpha=16), groups_of(folder, MARKED, chats()), theirs)


def test_a_weight_of_three_is_the_same_row_three_times(folder: Path, tmp_path: Path) -> None:
    rows = chats(MICRO * ACCUMULATION // 2)
    theirs = sft_trainer(folder, MARKED, [*rows, *rows[:2], *rows[:2]], tmp_path, assistant_only_loss=True)
    heavy = copy.deepcopy(rows)
    for row in heavy[:2]:
        for message in row["messages"][1::2]:
            message["loss_scale"] = 3.0
    assert_same_step(folder, Full(), groups_of(folder, MARKED, heavy), theirs)


def test_transformers_own_trainer(folder: Path, tmp_path: Path) -> None:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    groups = groups_of(folder, MARKED, chats())
    seen = Theirs({}, {})
    seen.trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=TrainingArguments(output_dir=str(tmp_path), **SETTINGS, **ONE_STEP),
        train_dataset=Dataset.from_list(labelled(groups)),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder)),
        callbacks=[seen],
    )
    seen.trainer.train()
    assert_same_step(folder, Full(), groups, seen)


def test_a_packed_batch_is_their_padding_free_one(folder: Path) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    groups = groups_of(folder, MARKED, chats())
    theirs = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(labelled(groups))
    ours = collate(groups, range(len(groups)))
    assert ours.ids_T.tolist() == theirs["input_ids"][0].tolist()
    assert ours.positions_T.tolist() == theirs["position_ids"][0].tolist()
    assert list(ours.offsets) == theirs["cu_seq_lens_q"].tolist()
    next_labels = [*theirs["labels"][0, 1:].tolist(), -100]
    shown = torch.where(ours.weights_T != 0, ours.targets_T, -100).tolist()
    assert shown == next_labels


def test_twenty_steps_of_adamw(folder: Path, tmp_path: Path) -> None:
    rows, steps = chats(20 * MICRO * ACCUMULATION), 20
    named = tmp_path / "template.jinja"
    named.write_text(MARKED, encoding="utf-8")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    optim = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 1.0}
    tree = {
        "model": {"path": str(folder), "dtype": "float32", "template": str(named)},
        "method": {"type": "full"},
        "data": {"datasets": [str(data)], "max_length": 128, "shuffle": False, "cache_dir": str(tmp_path / "cache")},
        "train": {"max_steps": steps, "micro_batch": MICRO, "accumulation": ACCUMULATION},
        "optim": optim,
        "save": {"every": None},
        "log": {"every": 1, "report_to": ["none"]},
        "output_dir": str(tmp_path / "runs"),
        "device": "cpu",
    }
    run = train(RunConfig.model_validate(tree), Console(quiet=True))
    ours = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    changes = {**optim, "max_steps": steps, "adam_beta2": 0.95, "max_length": 128}
    theirs = sft_trainer(folder, MARKED, rows, tmp_path, assistant_only_loss=True, **changes).losses
    assert len(ours) == len(theirs) == steps
    assert theirs[-1] < theirs[0] - 0.5
    assert ours == pytest.approx(theirs, abs=1e-4)
