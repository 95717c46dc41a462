"""R17: out of memory once halves the micro-batches and changes nothing else; twice ends with what to do."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.base.sealed import verify
from luthier.engine.checkpoint import read
from luthier.model.sharding import CAN_BEGIN_AGAIN

FULL = {"train_type": "full", "learning_rate": 1e-3}
FOUR = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}
"""One micro-batch of four samples makes a step."""


class Mark(torch.autograd.Function):
    """Hides an object in the graph of a pass: it lives as long as anything holds the graph."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: torch.Tensor, hidden_away: object) -> torch.Tensor:
        ctx.hidden_away = hidden_away
        return hidden_TD.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class Sentinel:
    """Something that can be waited for to be gone."""


def fail(calls: Callable[[int, int], bool], *, rank: int = 0, place: str = "loss", words: str | None = None) -> None:
    """No room in some passes of one process: `calls(number, tokens)` chooses them; empty ones always pass.

    When the next pass begins, nothing of the failed one may be in memory.

    Args:
        place: where it fails: when the loss is there, in the middle of the decoder, or in the backward pass.
    """
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

    from luthier.model.causal import Model
    from luthier.objectives.language import Language

    sums, hidden, layer = Language.sums, Model.hidden, Qwen2MLP.forward
    graphs: list[weakref.ref[Sentinel]] = []
    count, due = 0, False

    def run_out(*_: Any) -> None:
        nonlocal due
        due = False
        if words is not None:
            raise RuntimeError(words)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    def failing_sums(self: Any, model: Any, batch: Any) -> Any:
        nonlocal count, due
        assert all(graph() is None for graph in graphs), "the failed pass is still in memory"
        if batch.tokens and int(os.environ.get("RANK", "0")) == rank:
            count += 1
            due = calls(count, batch.tokens)
        terms = sums(self, model, batch)
        if due and place == "backward" and terms.losses["lm"].requires_grad:
            return type(terms)({"lm": Mark.apply(terms.losses["lm"], None)}, terms.metrics)
        if due:
            run_out()
        return terms

    def marked_hidden(self: Any, batch: Any) -> torch.Tensor:
        hidden_TD = hidden(self, batch)
        if not due:
            return hidden_TD
        gc.disable()
        mark = Sentinel()
        graphs.append(weakref.ref(mark))
        if place == "backward":
            hidden_TD.register_hook(run_out)
        return Mark.apply(hidden_TD, mark)  # pyright: ignore[reportReturnType]

    def failing_layer(self: Any, *arguments: Any) -> Any:
        if due and place == "layer":
            run_out()
        return layer(self, *arguments)

    Language.sums, Model.hidden, Qwen2MLP.forward = failing_sums, marked_hidden, failing_layer


def events(job: Any, kind: str) -> list[dict[str, Any]]:
    return [row for row in job.rows("events.jsonl") if row["data"].get("event") == kind]


def close(job: Any, straight: dict[str, torch.Tensor]) -> None:
    state, tensors = read(job.checkpoints().named("LATEST"))
    assert state.step in (4, 8) and tensors.trained.keys() == straight.keys()
    for name, weight in tensors.trained.items():
        torch.testing.assert_close(weight, straight[name], rtol=1e-3, atol=1e-5)


def test_no_room_once_halves_the_micro_batches_and_changes_nothing_else(job: Any, tmp_path: Path):
    job.run(**FULL, **FOUR)
    losses, straight = job.losses(), read(job.checkpoints().named("LATEST"))[1].trained
    job.output_dir = tmp_path / "full"
    said = job.run(lambda: fail(lambda number, _: number == 3), **FULL, **FOUR)
    assert "step 3" in said and "at most 128 tokens instead of 256" in said
    assert job.losses() == pytest.approx(losses, abs=1e-5)
    close(job, straight)
    (event,) = events(job, "halved_micro_batch")
    assert event["level"] == "warn" and event["data"]["tokens"] == 128
    assert read(job.checkpoints().named("LATEST"))[0].too_big == 256


def test_no_room_in_main_memory_is_the_same(job: Any):
    words = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
    words += "allocate 3221225472 bytes. Error code 12 (Cannot allocate memory)"
    said = job.run(lambda: fail(lambda number, _: number == 3, words=words), **FULL, **FOUR)
    assert "step 3 (3.00 GiB more were asked for): from here on" in said and "alloc_cpu" not in said
    assert "instead of 256" in said and len(job.losses()) == 8


def test_another_runtime_error_is_not_taken_for_it(job: Any):
    def broken() -> None:
        from luthier.objectives.language import Language

        def sums(*_: Any) -> None:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        Language.sums = sums  # pyright: ignore[reportAttributeAccessIssue]

    assert "mat1 and mat2" in job.run(broken, expect=1)


@pytest.mark.parametrize("flags", [{}, {"attn_impl": "sdpa"}])
def test_a_sample_longer_than_half_a_micro_batch_gets_one_of_its_own(job: Any, tmp_path: Path, flags: dict[str, str]):
    # Half of one sample's 64 tokens: most samples are longer.
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    job.run(**FULL, **one, **flags)
    losses = job.losses()
    job.output_dir = tmp_path / "full"
    job.run(lambda: fail(lambda number, _: number == 9), **FULL, **one, **flags)
    assert job.losses() == pytest.approx(losses, abs=1e-5)


def test_a_resumed_run_knows_what_is_too_big(job: Any):
    job.run(lambda: fail(lambda _, tokens: tokens > 128), max_steps=8, **FULL, **FOUR)
    first = job.runs()[0]
    assert len(events(job, "halved_micro_batch")) == 1
    checkpoint = first / "checkpoints" / "step-00000004"
    job.run(lambda: fail(lambda _, tokens: tokens > 128), resume_from_checkpoint=checkpoint, **FULL, **FOUR)
    assert len(job.runs()) == 2 and not events(job, "halved_micro_batch"), "it is not found out a second time"


def test_no_room_for_half_a_micro_batch_ends_with_three_things_to_do(job: Any):
    said = job.run(lambda: fail(lambda number, _: number > 2), expect=4, save_steps=2, **FULL, **FOUR)
    assert "out_of_memory" in said and "bug in Luthier" not in said
    assert "step 3 does not fit, not even in micro-batches of 128 tokens" in said
    assert "--per_device_train_batch_size 1 --gradient_accumulation_steps 4" in said
    assert "--gradient_checkpointing true" in said and "--max_length 32" in said
    assert job.checkpoints().named("LATEST") == job.checkpoints().path(2)
    assert verify(job.checkpoints().path(2)) is None
    assert events(job, "failed")[0]["data"]["code"] == "out_of_memory"


def test_an_evaluation_without_room_is_halved_by_itself(job: Any, tmp_path: Path):
    flags = {"split_dataset_ratio": 0.5, "per_device_eval_batch_size": 4, **FULL, **FOUR}
    job.run(**flags)
    evaluations = [row["eval_loss"] for row in job.rows() if "eval_loss" in row]
    job.output_dir = tmp_path / "full"
    said = job.run(lambda: fail(lambda number, _: number == 2), **flags)
    assert "the evaluation at step 0" in said
    assert [row["eval_loss"] for row in job.rows() if "eval_loss" in row] == pytest.approx(evaluations, abs=1e-5)
    state = read(job.checkpoints().named("LATEST"))[0]
    assert (state.too_big, state.too_big_to_judge) == (None, 256)


def test_no_room_for_half_an_evaluation_batch_names_its_flag(job: Any):
    flags = {"split_dataset_ratio": 0.5, "per_device_eval_batch_size": 4, **FULL, **FOUR}
    said = job.run(lambda: fail(lambda number, _: number <= 2), expect=4, **flags)
    assert "--per_device_eval_batch_size 1" in said and "--max_length 32" in said and "--train_type lora" in said


TWO = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, **FULL}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Callable[..., Path], chats: Path) -> Any:
    """Two processes that always have room."""
    from processes import Job

    job = Job(tmp_path_factory.mktemp("undisturbed"), tiny_model_dir("qwen2"), chats)
    job.run_ranks(2, max_steps=4, **TWO)
    return job


@pytest.mark.parametrize(
    ("shard", "rank", "place"),
    [("none", 1, "loss"), ("full", 0, "loss"), ("full", 1, "layer"), ("full", 0, "layer"), ("full", 1, "backward")],
)
def test_one_process_without_room_halves_all_together(job: Any, undisturbed: Any, shard: str, rank: int, place: str):
    def break_off() -> None:
        fail(lambda number, _: number == 6, rank=rank, place=place)

    if shard == "full" and not CAN_BEGIN_AGAIN:
        processes = job.start_ranks(2, break_off, max_steps=4, shard=shard, **TWO)
        codes = [process.wait() for process in processes]
        assert codes[rank] == 4 and codes[1 - rank] not in (0, 4)
        assert "torch 2.13 could have halved" in processes[rank].said() or rank == 1
        return
    said = job.run_ranks(2, break_off, max_steps=4, shard=shard, **TWO)
    assert "Out of memory in step 3" in said and "at most 32 tokens instead of 64" in said
    assert job.losses() == pytest.approx(undisturbed.losses(), abs=1e-5)
    close(job, read(undisturbed.checkpoints().named("LATEST"))[1].trained)


@pytest.mark.parametrize("shard", ["none", *["full"] * CAN_BEGIN_AGAIN])
def test_one_process_without_room_twice_ends_both_with_4(job: Any, shard: str):
    flags = {"shard": shard, **FULL}
    said = job.run_ranks(2, lambda: fail(lambda number, _: number > 2, rank=1), expect=4, **flags)
    assert "another process has no room" in said and "Try --" in said


@pytest.mark.parametrize("shard", ["none", *["full"] * CAN_BEGIN_AGAIN])
def test_an_evaluation_on_two_processes_without_room_on_one(job: Any, shard: str):
    flags = {"shard": shard, "split_dataset_ratio": 0.5, "per_device_eval_batch_size": 4, **FULL}
    said = job.run_ranks(2, lambda: fail(lambda number, _: number == 1, rank=1), max_steps=2, **flags)
    assert "the evaluation at step 0" in said and len(job.losses()) == 2
