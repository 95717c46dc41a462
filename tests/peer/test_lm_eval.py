"""Tasks of lm-evaluation-harness on our models, against the harness's own way of running the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, DataError
from luthier.evaluate.config import EvalConfig
from luthier.run.harness import run_harness

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}\\nAnswer:"
{more}
"""
CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: label\nmetric_list:\n  - metric: acc\n  - metric: acc_norm'
WRITTEN = (
    'doc_to_target: "{{choices[label]}}"\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 5}\n'
    "metric_list:\n  - metric: exact_match"
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    data = tmp_path / "data.jsonl"
    rows = [
        {"question": f"Which is {n}?", "choices": [f"{n}", "a cat", "the red house", f"{n + 1}"], "label": n % 4}
        for n in range(24)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, kind, more in (("our_choice", "multiple_choice", CHOICE), ("our_written", "generate_until", WRITTEN)):
        (tmp_path / f"{name}.yaml").write_text(
            TASK.format(name=name, kind=kind, data=data, more=more), encoding="utf-8"
        )
    return tmp_path


def test_the_harness_finds_the_same(
    tiny_model_dir: Callable[..., Path], tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm_eval: Any = pytest.importorskip("lm_eval")
    manager: Any = pytest.importorskip("lm_eval.tasks").TaskManager(include_path=str(tasks))
    hflm: Any = pytest.importorskip("lm_eval.models.huggingface").HFLM
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tiny_model_dir("qwen2")
    options = {
        "model": {"path": str(folder), "dtype": "float32"},
        "eval_dataset": ("our_choice", "our_written"),
        "eval_backend": "lm_eval",
        "tasks_path": str(tasks),
        "output_dir": str(tmp_path / "out"),
        "apply_chat_template": False,
    }
    found = run_harness(validate(EvalConfig, options), Console(quiet=True))
    ours = {(row.dataset, row.metric): row.score for row in found.measured.scores()}
    theirs = lm_eval.simple_evaluate(
        model=hflm(pretrained=str(folder), dtype="float32", device="cpu"),
        tasks=["our_choice", "our_written"],
        task_manager=manager,
        bootstrap_iters=0,
    )["results"]
    for (task, metric), score in ours.items():
        assert score == pytest.approx(theirs[task][f"{metric},none"]), (task, metric)
    assert ("our_choice", "acc_norm") in ours and ("our_written", "exact_match") in ours
    with pytest.raises(ConfigError, match="lm_eval knows no task 'nothing_like_it'"):
        run_harness(validate(EvalConfig, options | {"eval_dataset": ("nothing_like_it",)}), Console(quiet=True))
    (tasks / "data.jsonl").unlink()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DataError, match=r"--eval_dataset our_choice: the data of a task cannot be had.*data\.jsonl"):
        run_harness(validate(EvalConfig, options | {"eval_dataset": ("our_choice",)}), Console(quiet=True))
