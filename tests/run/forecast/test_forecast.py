"""A plan is what the run then is: parameters, tokens, steps, files; and it says so where something does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.base.console import Console
from luthier.base.errors import ConfigError
from luthier.engine.checkpoint import read
from luthier.model.config import ModelConfig, Shape
from luthier.model.load import load_tokenizer
from luthier.model.scratch_encoders import bert_tokenizer, t5_tokenizer, write_encoder
from luthier.run.config import RunConfig
from luthier.run.forecast.forecast import Forecast, forecast
from luthier.run.forecast.hardware import DEVICES, GIB, Device, device_named
from luthier.run.forecast.pace import Pace, Work, pace
from luthier.run.forecast.text import html, sections, to_json, verdict
from luthier.run.train import train

CPU = Device("cpu", 8.0, gpu=False, kernels=False, bfloat16=False, free_gib=8.0)


def rows(folder: Path, count: int = 24) -> Path:
    file = folder / "chats.jsonl"
    lines = [{"query": f"What is {n} and {n}?", "response": f"It is {2 * n}. " * (1 + n % 5)} for n in range(count)]
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return file


def settings(folder: Path, **more: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "model": {"path": "nano"},
        "data": {"datasets": [str(rows(folder))], "max_length": 256},
        "train": {"micro_batch": 2, "accumulation": 2, "max_steps": 2},
        "method": {"type": "lora", "rank": 4},
        "log": {"report_to": ["none"]},
        "output_dir": str(folder / "runs"),
        "device": "cpu",
    }
    for name, value in more.items():
        merged = isinstance(value, dict) and name != "method"
        tree[name] = {**tree.get(name, {}), **value} if merged else value
    return RunConfig.model_validate(tree)


def plan_of(folder: Path, device: Device = CPU, devices: int = 1, **more: Any) -> Forecast:
    return forecast(settings(folder, **more), device, devices, Console(quiet=True))


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": {"type": "full"}, "train": {"ema_decay": 0.9}},
        {"optim": {"name": "sgd"}, "data": {"packing": True}},
        {"method": {"type": "boft", "target": ["q_proj"]}},
        {"method": {"type": "prompt", "text": "Answer in one sentence."}},
        {"method": {"type": "prefix"}},
        {"method": {"type": "ptuning"}},
    ],
    ids=["lora", "full-ema", "sgd-packed", "boft", "prompt", "prefix", "ptuning"],
)
def test_a_plan_is_what_the_run_then_is(tmp_path: Path, more: dict[str, Any]) -> None:
    config = settings(tmp_path, **more)
    plan = forecast(config, CPU, 1, Console(quiet=True))
    run = train(config, Console(quiet=True))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    began = next(event["data"] for event in events if event["data"].get("event") == "started")
    assert (plan.parameters, plan.trained) == (began["parameters"], began["trained_parameters"])
    assert (plan.data.samples, plan.data.tokens) == (began["samples"], began["tokens_per_epoch"])
    assert (plan.data.steps, plan.data.per_step) == (began["steps"], began["global_batch"])
    assert plan.data.epochs == pytest.approx(began["epochs"])
    checkpoint = next((run / "checkpoints").glob("step-*"))
    written = {file.name: file.stat().st_size for file in checkpoint.glob("*.safetensors")}
    assert plan.checkpoint == written
    assert plan.fits and plan.demand.gradients == pytest.approx(4 * plan.trained, rel=0.05)


def test_layers_at_rest_have_no_gradient_and_no_state(tmp_path: Path) -> None:
    tree = settings(tmp_path, train={"ema_decay": 0.9}).model_dump() | {"method": {"type": "lisa", "active_layers": 1}}
    config = RunConfig.model_validate(tree)
    plan = forecast(config, CPU, 1, Console(quiet=True))
    run = train(config, Console(quiet=True))
    checkpoint = next((run / "checkpoints").glob("step-*"))
    assert plan.checkpoint == {file.name: file.stat().st_size for file in checkpoint.glob("*.safetensors")}
    state = read(checkpoint)[1].optimizer
    assert plan.demand.optimizer == sum(value.nbytes for value in state.values())
    moving = sum(value.nbytes for name, value in state.items() if name.endswith("exp_avg"))
    assert moving < 2 * plan.trained and plan.demand.average == 4 * plan.trained
    assert plan.demand.gradients == pytest.approx(moving, rel=0.01)
    rested = forecast(config, DEVICES["L4"], 1, Console(quiet=True))
    assert rested.layers == "Luthier's kernels"
    assert rested.demand.gradients == pytest.approx(moving, rel=0.01)


def test_a_device_that_is_too_small_says_what_to_change(tmp_path: Path) -> None:
    small = Device("small", 0.7, tflops=100.0)
    plan = plan_of(
        tmp_path, small, train={"micro_batch": 8, "accumulation": 1, "max_steps": 1}, data={"max_length": 512}
    )
    assert [demand.keep for demand in plan.demands] == ["all", "most", "some", "input"]
    assert plan.layers == "Luthier's kernels"
    tight = Device("tight", 0.0, free_gib=plan.demands[-1].total / GIB)
    narrow = plan_of(
        tmp_path, tight, train={"micro_batch": 8, "accumulation": 1, "max_steps": 1}, data={"max_length": 512}
    )
    assert not narrow.fits and narrow.chosen == "input"
    assert narrow.suggestions[0] == "--per_device_train_batch_size 2 --gradient_accumulation_steps 4"
    assert "does not fit on tight" in verdict(narrow) and narrow.suggestions[0] in verdict(narrow)
    # What is suggested is what fits: the largest micro-batch named fits, one more does not.
    most = narrow.largest["input"]
    assert 1 <= most < 8

    def fits(count: int) -> bool:
        train = {"micro_batch": count, "accumulation": 1, "max_steps": 1}
        return plan_of(tmp_path, tight, train=train, data={"max_length": 512}).demand.fits

    assert fits(most) and not fits(most + 1)


def test_the_way_that_is_chosen_is_the_fastest_that_fits(tmp_path: Path) -> None:
    train = {"micro_batch": 8, "accumulation": 1, "max_steps": 1}
    plan = plan_of(tmp_path, DEVICES["H200"], train=train, data={"max_length": 512})
    assert plan.chosen == "all" and all(demand.fits for demand in plan.demands)
    totals = [demand.total for demand in plan.demands]
    assert totals == sorted(totals, reverse=True)
    between = Device("between", 0.0, free_gib=(totals[1] + totals[2]) / 2 / 0.92 / GIB)
    assert plan_of(tmp_path, between, train=train, data={"max_length": 512}).chosen == "some"


def test_several_devices_hold_parts_or_copies(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    more: dict[str, Any] = {"model": {"path": str(tiny_model_dir())}, "method": {"type": "lora", "rank": 16}}
    one = plan_of(tmp_path, DEVICES["4090"], **more)
    copies = plan_of(tmp_path, DEVICES["4090"], 4, **more)
    assert copies.data.per_step == 4 * one.data.per_step and copies.demand.weights == one.demand.weights
    parts = plan_of(tmp_path, DEVICES["4090"], 4, train={"shard": "full"}, **more)
    assert parts.shard == "full" and parts.demand.weights < one.demand.weights / 3
    assert parts.demand.optimizer == pytest.approx(one.demand.optimizer / 4, rel=0.01)
    assert [demand.keep for demand in parts.demands] == ["input"]


@pytest.fixture(scope="module")
def models(tiny_model_dir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A decoder, BERT and T5, of a few random weights each."""
    folder = tmp_path_factory.mktemp("encoders")
    size: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    texts = [f"The violin of number {n} rings, 小提琴 {n * n}." for n in range(300)]
    made: dict[str, Path] = {"qwen2": tiny_model_dir()}
    for name, learn in {"bert": bert_tokenizer, "t5": t5_tokenizer}.items():
        shape = Shape.model_validate({"architecture": name, "vocab_size": 300, "max_position_embeddings": 512, **size})
        made[name] = folder / name
        write_encoder(made[name], learn(texts, 300), shape, 0)
    return made


@pytest.mark.parametrize(
    ("objective", "model", "line"),
    [
        ("pretrain", "qwen2", {"text": "A text about a violin that rings, number {n}."}),
        ("seq_cls", "qwen2", {"text": "number {n}", "label": "odd"}),
        ("seq_cls", "qwen2", {"text": "number {n}", "label": ["odd", "whole"]}),
        ("embedding", "qwen2", {"query": "what is {n}", "pos": ["it is {n}"], "neg": ["it is not"]}),
        ("reranker", "qwen2", {"query": "what is {n}", "pos": ["it is {n}"], "neg": ["it is not"]}),
        ("token_cls", "bert", {"tokens": ["number", "{n}"], "tags": ["O", "B-odd"]}),
        ("mlm", "bert", {"text": "A text about a violin that rings, number {n}."}),
        ("span_corruption", "t5", {"text": "A text about a violin that rings, number {n}."}),
        ("seq2seq", "t5", {"query": "what is {n}", "response": "it is {n}"}),
    ],
)
def test_other_tasks_are_counted_too(
    models: Mapping[str, Path], tmp_path: Path, objective: str, model: str, line: dict[str, Any]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join(json.dumps(line).replace("{n}", str(n)).replace("odd", "odd" if n % 2 else "even") for n in range(20))
    )
    more: dict[str, Any] = {"objective": {"type": objective}, "data": {"datasets": [str(file)], "max_length": 128}}
    plan = plan_of(tmp_path, DEVICES["L4"], model={"path": str(models[model])}, **more)
    assert plan.fits and plan.demand.activations > 0 and plan.objective == objective
    # Losses that choose rows by their numbers are left out, and that is said.
    assert plan.demand.whole == (objective != "embedding") == (not plan.notes)


# Peaks of one H200 that `benchmarks/plan.py` measured (docs/performance.md), models of these sizes, full tuning.
BERT = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
T5 = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12, "num_decoder_layers": 12}


@pytest.mark.parametrize(
    ("objective", "model", "size", "measured"), [("mlm", "bert", BERT, 8.16), ("span_corruption", "t5", T5, 28.56)]
)
def test_what_was_measured_of_encoders_is_foretold_within_three_percent(
    models: Mapping[str, Path], tmp_path: Path, objective: str, model: str, size: dict[str, int], measured: float
) -> None:
    folder, file = shutil.copytree(models[model], tmp_path / model), tmp_path / "rows.jsonl"
    settings = {**json.loads((folder / "config.json").read_text()), **size, "vocab_size": 8192}
    (folder / "config.json").write_text(json.dumps(settings))
    text = " ".join(f"number {n} rings" for n in range(600))
    file.write_text("\n".join(json.dumps({"text": text}) for _ in range(64)))
    more: dict[str, Any] = {
        "objective": {"type": objective},
        "model": {"path": str(folder), "dtype": "bfloat16"},
        "method": {"type": "full"},
        "data": {"datasets": [str(file)], "max_length": 512, "overlong": "truncate"},
        "train": {"micro_batch": 32, "accumulation": 2, "max_steps": 2},
    }
    plan = plan_of(tmp_path, DEVICES["H200"], **more)
    assert plan.demand.total / GIB == pytest.approx(measured, rel=0.03)


def test_a_micro_batch_has_room_for_a_sample_of_several_texts(models: Mapping[str, Path], tmp_path: Path) -> None:
    file, text = tmp_path / "rows.jsonl", "it is a number " * 8
    file.write_text("\n".join(json.dumps({"query": text, "pos": text, "neg": text}) for _ in range(20)))
    more: dict[str, Any] = {"objective": {"type": "embedding"}, "train": {"micro_batch": 1}}
    data = {"datasets": [str(file)], "max_length": 32, "overlong": "truncate"}
    plan = plan_of(tmp_path, DEVICES["L4"], model={"path": str(models["qwen2"])}, data=data, **more)
    assert plan.micro_tokens == plan.data.longest == 3 * 32


@pytest.mark.parametrize("kind", ["sft", "pretrain"])
@pytest.mark.parametrize("method", ["lora", "prompt"])
def test_without_rows_a_plan_is_that_of_rows_as_long_as_they_may_be(tmp_path: Path, kind: str, method: str) -> None:
    file = tmp_path / "long.jsonl"
    line = {"messages": [{"role": "user", "content": "Go on."}, {"role": "assistant", "content": "On and on. " * 99}]}
    file.write_text("\n".join(json.dumps(line) for _ in range(8)))
    more = {"objective": {"type": kind}, "data": {"max_length": 64}}
    config = settings(tmp_path, **more)
    config = RunConfig.model_validate({**config.model_dump(), "method": {"type": method}})

    def plan(datasets: list[str]) -> Forecast:
        tree = config.model_dump()
        return forecast(
            RunConfig.model_validate({**tree, "data": {**tree["data"], "datasets": datasets}}),
            DEVICES["L4"],
            1,
            Console(quiet=True),
        )

    read, supposed = plan([str(file)]), plan([])
    assert supposed.demands == read.demands and supposed.largest == read.largest
    assert supposed.checkpoint == read.checkpoint and supposed.data.steps == read.data.steps == 2
    assert supposed.data.tokens_in_all == 2 * supposed.data.per_step * 64
    assert any("each is taken to be 64 tokens long" in note for note in supposed.notes)
    assert "64 tokens are supposed" in str(sections(supposed)[0].rows) and to_json(supposed)["fits"] is True


def test_without_rows_what_depends_on_them_is_refused(tmp_path: Path) -> None:
    tree = settings(tmp_path).model_dump(exclude={"data"})
    with pytest.raises(ConfigError, match="not how long its samples are"):
        forecast(RunConfig.model_validate(tree), CPU, 1, Console(quiet=True))
    tree |= {"objective": {"type": "seq_cls"}, "data": {"max_length": 64}}
    with pytest.raises(ConfigError, match="what a step of seq_cls holds depends on its rows"):
        forecast(RunConfig.model_validate(tree), CPU, 1, Console(quiet=True))


def test_the_tokenizer_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def reading(config: ModelConfig) -> Any:
        read.append(config.path)
        return load_tokenizer(config)

    for room in ("forecast", "sketch"):
        monkeypatch.setattr(f"luthier.run.forecast.{room}.load_tokenizer", reading, raising=False)
    plan_of(tmp_path)
    assert len(read) == 1


@pytest.mark.parametrize("device", [CPU, DEVICES["4090"]], ids=lambda device: device.name)
@pytest.mark.parametrize("top_k", [None, 5])
def test_a_teacher_is_counted_and_not_loaded(
    device: Device, top_k: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        pytest.fail("the teacher was loaded")

    for room in ("teacher", "distil"):
        monkeypatch.setattr(f"luthier.objectives.{room}.load_teacher", loaded)
    plan = plan_of(tmp_path, device, objective={"type": "distill", "teacher": "nano", "top_k": top_k})
    alone = plan_of(tmp_path, device, objective={"type": "sft"})
    (note,) = plan.notes or ("",)
    assert ("teacher is asked before the student is loaded" in note) == (top_k is not None)
    teacher = 7_676_160 * (4 if device is CPU else 2)
    more = plan.demand.weights - alone.demand.weights
    assert more == pytest.approx(teacher if top_k is None else 0, rel=0.01)
    assert isinstance(plan.pace, str)


def test_short_rows_tell_how_many_fit(tmp_path: Path) -> None:
    """Of very few tokens a step holds little but what it holds anyway, and says nothing of more of them."""
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"query": "a", "response": "b"}), encoding="utf-8")
    found = plan_of(tmp_path, data={"datasets": [str(short)]})
    (count,) = found.largest.values()
    again = plan_of(tmp_path, data={"datasets": [str(short)]}, train={"micro_batch": count, "accumulation": 1})
    assert again.demand.fits and again.demand.total > 0.7 * again.device.available


def test_what_cannot_be_counted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(*_: Any) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr("luthier.run.forecast.forecast.without_numbers", unable)
    with pytest.raises(ConfigError, match="lora for sft cannot be counted without weights") as told:
        plan_of(tmp_path)
    assert told.value.code == "cannot_plan"


def test_plain_layers_and_old_devices(tiny_model_dir: Callable[..., Path], tmp_path: Path) -> None:
    small = str(tiny_model_dir())
    plain = plan_of(tmp_path, DEVICES["A100-80"], model={"path": small, "layers": "plain"})
    assert [demand.keep for demand in plain.demands] == ["most", "input"] and plain.layers == "transformers"
    old = plan_of(tmp_path, DEVICES["T4"], model={"path": small})
    assert old.dtype == "float32" and "older" in old.layers and isinstance(old.pace, str)


def test_text_and_json_say_the_same(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, DEVICES["4090"], data={"split_ratio": 0.2})
    told = to_json(plan)
    json.dumps(told)
    assert told["fits"] is True and told["peak"] == plan.demand.total and plan.evaluation is not None
    shown = "\n".join(str(row) for section in sections(plan) for row in section.rows)
    assert f"{plan.trained:,} parameters" in shown and "adapter_model.safetensors" in shown
    page = html({"": plan})
    assert "<svg" in page and verdict(plan) in page and "default-src 'none'" in page and "://" not in page


def test_devices_by_name() -> None:
    assert device_named("h100", None).name == "H100" and device_named("RTX 4090", None).name == "4090"
    assert device_named("NVIDIA A100", None).name == "A100-80"
    assert device_named("auto", 24.0).available == int(23.4 * GIB)
    assert device_named("H200", 100.0).gib == 100.0
    with pytest.raises(ConfigError, match="Did you mean L40S"):
        device_named("L40", None)


def test_the_work_of_a_token() -> None:
    seven = Work(7_070_000_000, 20_000_000, 2.0 * 4096 * 3584 * 28)
    # About 31 GFLOP a token with everything kept: four products of each frozen weight, and attention.
    assert seven.flops(recomputed=0.0) == pytest.approx(31.2e9, rel=0.01)
    kept = pace(DEVICES["H200"], 1, seven, "all", by_hand=True, quant=None, dtype="bfloat16")
    lean = pace(DEVICES["H200"], 1, seven, "input", by_hand=True, quant=None, dtype="bfloat16")
    assert isinstance(kept, Pace) and kept.tokens_per_second == pytest.approx(18_358, rel=0.03)
    assert isinstance(lean, Pace) and lean.tokens_per_second == pytest.approx(13_297, rel=0.03)
    half = Work(494_000_000, 494_000_000, 2.0 * 2048 * 896 * 24)
    small = pace(DEVICES["H200"], 1, half, "all", by_hand=True, quant=None, dtype="bfloat16")
    assert isinstance(small, Pace) and small.tokens_per_second == pytest.approx(146_000, rel=0.03)
    two = pace(DEVICES["H200"], 2, seven, "all", by_hand=True, quant=None, dtype="bfloat16")
    assert isinstance(two, Pace) and two.tokens_per_second / kept.tokens_per_second == pytest.approx(1.97, rel=0.01)
    assert isinstance(pace(DEVICES["T4"], 1, seven, "all", by_hand=False, quant=None, dtype="float32"), str)
