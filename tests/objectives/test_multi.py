"""Several tasks on one backbone: one loss, one gradient however a step is cut, and a whole model for each task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders import save_encoder
from ranks import together
from settings import CPU, HERE, encoded

from luthier.base.records import Labelled, Record, Similar, Tagged, Text
from luthier.data.batch import Batch, Group, collate
from luthier.data.config import DataConfig
from luthier.engine.mesh import Mesh, open_mesh
from luthier.engine.step import begin, evaluate
from luthier.model import methods, shared
from luthier.model.config import Full, Lora, Method, ModelConfig
from luthier.model.heads import CLASSES, Head
from luthier.model.load import Model, load_tokenizer
from luthier.model.method import BitFit
from luthier.objectives.classify import Classification
from luthier.objectives.config import Embed, Mlm, Multi, OneTask, SeqCls, TokenCls, overlong
from luthier.objectives.multi import Multi as Tasks
from luthier.objectives.registry import build
from luthier.objectives.setting import Part, Setting
from luthier.objectives.tag import Tagging

WORDS = ("violin", "maker", "planes", "the", "top", "name")
WEIGHTS = (1.0, 2.0, 1.0, 0.5)
CUTS = (
    [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]],
    [[n] for n in range(12)],
    [[2, 0], [1], [5, 4, 3], [6], [8, 7], [9, 10], [11]],
)
HEADS = {
    "mlm": Head("masked"),
    "ner": Head("token", ("O", "B-x", "I-x")),
    "mood": Head("sequence", ("a", "b"), "single_label_classification"),
    "topic": Head("sequence", ("a", "b", "c"), "single_label_classification"),
    "vectors": Head("none"),
}


def tasks(folder: Path) -> Tasks:
    """Two classifications, tags and hidden words, three rows each."""
    model = ModelConfig(path=str(folder))
    setting = Setting(load_tokenizer(model), model, DataConfig(overlong="truncate"), 64)
    plain = setting.plain
    several = {
        "mood": Classification(SeqCls(), ("a", "b"), "single_label_classification", None, plain, None),
        "ner": Tagging(TokenCls(), ("O", "B-x"), plain),
        "size": Classification(SeqCls(), ("value",), "regression", None, plain, None),
        "lm": build(Mlm(probability=0.5), setting),
    }
    return Tasks(tuple(Part(name, objective, setting.data) for name, objective in several.items()), WEIGHTS)


def records(kind: int) -> list[Record]:
    texts = [WORDS[: 2 + n + kind % 2] for n in range(3)]
    match kind:
        case 0:
            return [Labelled(" ".join(words), "ab"[n % 2], HERE, weight=1.0 + n) for n, words in enumerate(texts)]
        case 1:
            return [Tagged(words, tuple(("O", "B-x")[n % 2] for n in range(len(words))), HERE) for words in texts]
        case 2:
            return [Labelled(" ".join(words), n / 2, HERE) for n, words in enumerate(texts)]
        case _:
            return [Text(" ".join(words * 2), HERE) for words in texts]


def groups(objective: Tasks) -> list[Group]:
    found: list[Group] = []
    for kind, part in enumerate(objective.tasks):
        found += [replace(group, kind=kind) for group in encoded(part.objective, records(kind))]
    return found


def opened(objective: Tasks, folder: Path, method: Method, attention: str = "auto") -> Model:
    config = ModelConfig.model_validate({"path": str(folder), "attention": attention})
    torch.manual_seed(0)
    heads = {part.name: part.objective.head for part in objective.tasks}
    model = shared.load_shared(config, CPU.device, tokenizer=load_tokenizer(config), tasks=heads)
    methods.apply(model, method)
    model.train_mode()
    model.eval_mode()
    return model


def cut(samples: list[Group], bins: list[list[int]]) -> list[Batch]:
    return [collate([samples[n] for n in members], members, samples[members[0]].kind) for members in bins]


def step(model: Model, objective: Tasks, batches: list[Batch], mesh: Mesh = CPU) -> tuple[Any, torch.Tensor]:
    for weight in model.trained().values():
        weight.grad = None
    result = begin(model, objective, batches, mesh, max_norm=0.0).read()
    found = [torch.zeros_like(w) if w.grad is None else w.grad for w in model.trained().values()]
    return result, torch.cat([gradient.reshape(-1) for gradient in found])


@pytest.mark.parametrize("method", [Full(), Lora(rank=4, init="gaussian")], ids=["full", "lora"])
def test_any_cut_and_padding_give_one_gradient(method: Method, tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    objective = tasks(folder)
    samples = groups(objective)
    found: list[tuple[Any, torch.Tensor]] = []
    for attention in ("auto", "eager"):
        model = opened(objective, folder, method, attention)
        assert model.packed == (attention == "auto")
        found += [step(model, objective, cut(samples, bins)) for bins in CUTS]
    for result, gradient in found[1:]:
        assert result.loss == pytest.approx(found[0][0].loss, rel=1e-6)
        assert result.grad_norm == pytest.approx(found[0][0].grad_norm, rel=1e-6)
        assert float((gradient - found[0][1]).norm() / found[0][1].norm()) < 1e-6


def test_the_loss_is_the_weighted_sum_of_each_tasks_own(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    objective = tasks(folder)
    model, samples = opened(objective, folder, Full()), groups(objective)
    result, gradient = step(model, objective, cut(samples, CUTS[0]))
    expected, added = 0.0, torch.zeros_like(gradient)
    for kind, part in enumerate(objective.tasks):
        one = Tasks((part,), (1.0,))
        alone, its = step(
            model, one, cut([replace(group, kind=0) for group in samples[3 * kind : 3 * kind + 3]], [[0, 1, 2]])
        )
        expected += WEIGHTS[kind] * alone.loss
        added += WEIGHTS[kind] * its
        mean = result.means[f"{part.name}/loss"]
        assert mean[0] / mean[1] == pytest.approx(alone.loss, rel=1e-6)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    assert float((gradient - added).norm() / added.norm()) < 1e-5


def test_a_step_without_a_task_trains_the_others_and_tells_nothing_of_it(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    objective = tasks(folder)
    model, samples = opened(objective, folder, Full()), groups(objective)
    result, _ = step(model, objective, cut(samples, CUTS[0][:1]))
    assert result.means["size/loss"][1] == 0 and result.means["mood/loss"][1] > 0
    assert all(weight.grad is not None for weight in model.trained().values())
    found = evaluate(model, objective, cut(samples, CUTS[0][1:2]), CPU).metrics
    assert "ner/loss" in found and "ner/f1" in found and not any(name.startswith("mood/") for name in found)


def test_a_loss_that_rows_have_together_is_judged_alike_in_any_cut(tmp_path: Path):
    """It is found in the outputs of the set, not in those of micro-batches, and weighs in the sum as in training."""
    folder = save_encoder(tmp_path, "bert")
    model_config = ModelConfig(path=str(folder))
    setting = Setting(load_tokenizer(model_config), model_config, DataConfig(overlong="truncate"), 64)
    vectors = Part("vectors", build(Embed(loss="infonce"), setting), setting.data)
    objective = Tasks((tasks(folder).tasks[0], vectors), (1.0, 0.5))
    model = opened(objective, folder, Full())
    similar: list[Record] = [Similar(WORDS[n], (WORDS[n + 3],), (), HERE) for n in range(3)]
    samples = [replace(group, kind=0) for group in encoded(objective.tasks[0].objective, records(0))]
    samples += [replace(group, kind=1) for group in encoded(vectors.objective, similar)]
    found = [evaluate(model, objective, cut(samples, bins), CPU).metrics for bins in (CUTS[0][:2], CUTS[1][:6])]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    trained, _ = step(model, objective, cut(samples, CUTS[0][:2]))
    means = {name: total / count for name, (total, count) in trained.means.items()}
    assert found[0]["loss"] == pytest.approx(trained.loss, rel=1e-5)
    for name in ("mood/loss", "vectors/loss", "vectors/weighted_loss"):
        assert found[0][name] == pytest.approx(means[name], rel=1e-5) and means[name] > 0.1


def of_ranks(folder: Path) -> list[Any]:
    with open_mesh("cpu") as mesh:
        objective = tasks(folder)
        model, samples = opened(objective, folder, Full()), groups(objective)
        batches = cut(samples, [[0, 1], [2], [3], [4, 5], [6, 7, 8], [9, 10], [11]])
        empty = collate([], [], 2)
        bins = [*batches[:5], empty, *batches[5:]]  # as the loader does: of each kind a multiple of the processes
        result, gradient = step(model, objective, bins[mesh.rank :: mesh.world], mesh)
        found = evaluate(model, objective, bins[mesh.rank :: mesh.world], mesh).metrics
        return [result.loss, result.grad_norm, float(gradient.double().square().sum()), found]


def test_two_processes_take_the_step_of_one(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    one = of_ranks(folder)
    for found in together(2, lambda: of_ranks(folder)):
        assert found[:3] == pytest.approx(one[:3], rel=1e-6)
        assert found[3] == pytest.approx(one[3], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("shape", ["bert", "modernbert", "roberta", "distilbert"])
@pytest.mark.parametrize("method", [Full(), Lora(rank=4)], ids=["full", "lora"])
def test_every_head_is_a_whole_model_in_plain_transformers(method: Method, shape: str, tmp_path: Path):
    import peft

    base, out = save_encoder(tmp_path / "base", shape), tmp_path / "out"
    config, ids = ModelConfig(path=str(base)), torch.tensor([[2, 10, 11, 12, 13, 3]])
    model = shared.load_shared(config, CPU.device, tokenizer=load_tokenizer(config), tasks=HEADS)
    methods.apply(model, method)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.trained().values():
            weight += torch.randn_like(weight) * 0.05
    shared.save(model, out, names=tuple(HEADS))
    for name, head in HEADS.items():
        place, kind = out / "heads" / name, getattr(transformers, CLASSES[head.kind])
        if isinstance(method, Full):
            plain = kind.from_pretrained(place)
        else:
            labels = {"num_labels": len(head.labels)} if head.labels else {}
            plain = peft.PeftModel.from_pretrained(kind.from_pretrained(base, **labels), str(place))
        with torch.no_grad():
            expected, got = model.under(name).base(input_ids=ids)[0], plain.eval()(input_ids=ids)[0]
        assert float((got - expected).abs().max()) < 1e-5, name
    if isinstance(method, Full):
        whole = transformers.AutoModel.from_pretrained(out).eval()
        with torch.no_grad():
            expected = model.base.base_model(input_ids=ids)[0]
            assert float((whole(input_ids=ids)[0] - expected).abs().max()) < 1e-5
        files = [*out.glob("**/backbone.safetensors"), out / "model.safetensors"]
        assert len({file.stat().st_ino for file in files}) == 1, "the backbone lies on the disk once"
        again = shared.load_shared(
            config.model_copy(update={"path": str(out)}), CPU.device, tokenizer=load_tokenizer(config), tasks=HEADS
        )
        assert all(torch.equal(weight, model.weights()[name]) for name, weight in again.weights().items())


def test_new_heads_move_with_biases_too(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    moving = set(opened(tasks(folder), folder, BitFit()).trained())
    assert {"classifier.weight", "heads.ner.classifier.weight", "heads.size.classifier.weight"} <= moving
    assert not any(".weight" in name and "encoder" in name for name in moving)


def test_a_decoder_has_a_classifier_beside_its_vocabulary(tiny_model_dir: Callable[..., Path], tmp_path: Path):
    config = ModelConfig(path=str(tiny_model_dir("qwen2")))
    heads = {"chat": Head("causal"), "mood": Head("sequence", ("a", "b"), "single_label_classification")}
    model = shared.load_shared(config, CPU.device, tokenizer=load_tokenizer(config), tasks=heads)
    methods.apply(model, Full())
    assert model.under("chat").head.weight is model.base.get_input_embeddings().weight
    shared.save(model, tmp_path / "out", names=tuple(heads))
    ids = torch.tensor([[5, 80, 33, 7]])
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "heads" / "chat").eval()
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, model.under("chat").base(input_ids=ids).logits, atol=1e-5)


def test_tasks_for_different_kinds_of_model_are_refused(tmp_path: Path):
    folder = save_encoder(tmp_path, "bert")
    config = ModelConfig(path=str(folder))
    bad = {"tags": Head("token", ("a",)), "words": Head("seq2seq")}
    with pytest.raises(Exception, match=r"backbone in common|encoder and a decoder"):
        shared.load_shared(config, CPU.device, tokenizer=load_tokenizer(config), tasks=bad)


def test_settings_that_mean_nothing_are_refused():
    one = OneTask(datasets=("a.jsonl",), objective=SeqCls())
    with pytest.raises(ValueError, match="at least two"):
        Multi(tasks={"a": one})
    with pytest.raises(ValueError, match="letters, digits"):
        Multi(tasks={"a/b": one, "c": one})
    with pytest.raises(ValueError, match="ratio"):
        Multi(tasks={"a": one, "b": one.model_copy(update={"ratio": 1.0})})
    assert overlong(Mlm()) == "split" and overlong(Embed()) == "truncate"
