"""Parity says yes when ways to run a model agree, and names the row, the place and the tokens when they do not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from luthier.base.console import Console
from luthier.base.records import Chat
from luthier.cli.parity import Disagree, ParityConfig, parity
from luthier.data.render import Renderer
from luthier.model.config import ModelConfig
from luthier.model.load import load_tokenizer
from luthier.run.parity import Spoken, compare_answers
from luthier.run.rows import PREVIEWED, previewed

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
]


def test_run_agrees_with_itself_and_another_model_does_not(
    nano_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.base.config import validate
    from luthier.run.config import RunConfig
    from luthier.run.train import train

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    text = nano_dir.parent / "text" / "chat.jsonl"
    settings = {
        "model": {"path": "nano"},
        "data": {"datasets": [f"{text}#8"]},
        "train": {"max_steps": 2},
        "log": {"report_to": []},
        "output_dir": str(tmp_path / "runs"),
    }
    config = validate(RunConfig, settings)
    train(config, Console(quiet=True))
    (run,) = (tmp_path / "runs").glob("v*")
    renderer = Renderer(load_tokenizer(ModelConfig(path=str(nano_dir))))
    lines = [json.loads(line) for line in (run / PREVIEWED).read_text().splitlines()]
    rows = previewed(run, config, renderer, 3)
    ids = [renderer.chat(row, train_on="last").ids.tolist() for row in rows if isinstance(row, Chat)]
    assert len(lines) == 8 and ids == [line[0] for line in lines[:3]]  # the very rows that were shown, in their order
    report = tmp_path / "parity.json"
    wish = {"run": str(tmp_path / "runs"), "rows": 2, "max_new_tokens": 6, "report": str(report)}
    parity(ParityConfig.model_validate(wish), Console(quiet=True))
    found = json.loads(report.read_text())
    assert found["prompts"]["same"] == {"infer": 2, "deploy": 2, "transformers": 2}
    merged = found["engines"][0]
    assert merged["engine"] == "merged" and merged["same"] == 2 and merged["largest"] < 1e-3
    with pytest.raises(Disagree, match="beyond the tolerance: base"):
        parity(
            ParityConfig.model_validate(wish | {"exported": [str(nano_dir)], "tolerance": 1e-6}), Console(quiet=True)
        )


def test_differences_are_named_and_judged(nano_dir: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(nano_dir)))
    left = [Spoken((300, 301, 302), (-0.1, -0.2, -0.3)), Spoken((300,), (-0.1,))]
    right = [Spoken((300, 305), (-0.1, -2.2)), Spoken((300,), (-0.11,))]
    found = compare_answers("m", left, right, tokenizer, exact=True, tolerance=0.02)
    assert found.failed and found.same == 1 and found.largest == pytest.approx(0.01)
    assert found.differences[0].startswith("row 1, token 1: ") and "(-0.2000) against" in found.differences[0]
    near = compare_answers(
        "m", left, [Spoken((300, 305), (-0.1, -0.21)), right[1]], tokenizer, exact=True, tolerance=0.02
    )
    assert not near.failed and near.differences[0].endswith("a tie")
    rounded = compare_answers("m", left, right, tokenizer, exact=False, tolerance=0.5)
    assert not rounded.failed
