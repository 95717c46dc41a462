"""vLLM for real, on a CPU.  `tests/peer/vllm_env.sh DIR` makes its environment; then

LUTHIER_VLLM=DIR/bin/vllm python -m pytest -m peer tests/peer/test_vllm.py
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.evaluate.config import EvalConfig
from luthier.generate.config import EngineConfig, SamplingConfig
from luthier.generate.request import Request
from luthier.run.evaluation import evaluate
from luthier.run.peers import open_peer
from luthier.serve.blocking import Blocking

PROGRAM = "LUTHIER_VLLM"
pytestmark = [pytest.mark.peer, pytest.mark.slow]


def test_greedy_answers_are_those_of_the_local_engine_also_after_a_kill(
    program: str, ours: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    settings = EngineConfig(engine_command=program, engine_args="--enforce-eager")
    engine, manner, _ = open_peer(ours.config, "vllm", settings, slots=4)
    prompts = [tuple(manner.renderer.tokenizer(text)["input_ids"]) for text in ("The violin", "制琴师")]  # pyright: ignore
    requests = [Request(prompt, SamplingConfig(max_new_tokens=12), logprobs=2) for prompt in prompts]

    async def ask() -> list[list[tuple[int, float]]]:
        found: list[list[tuple[int, float]]] = []
        for request in requests:
            scores = [score async for piece in engine.stream(request) for score in piece.scores]
            found.append([(score.token, score.logprob) for score in scores])
        return found

    async def main() -> list[list[list[tuple[int, float]]]]:
        try:
            await engine.start()
            first = await ask()
            assert engine.process.pid is not None
            os.killpg(engine.process.pid, signal.SIGKILL)
            while engine.trouble() is None:
                await asyncio.sleep(0.1)
            while engine.trouble() is not None:
                await asyncio.sleep(0.5)
            return [first, await ask()]
        finally:
            await engine.close()

    before, after = asyncio.run(main())
    for request, one, other in zip(requests, before, after, strict=True):
        here = [(score.token, score.logprob) for piece in ours.generator.pieces(request) for score in piece.scores]
        assert [token for token, _ in one] == [token for token, _ in other] == [token for token, _ in here]
        assert max(abs(a[1] - b[1]) for a, b in zip(one, here, strict=True)) < 0.01


def test_questions_put_to_it_are_answered_and_weighed_as_here(
    program: str, ours: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    rows = ["question,A,B,C,answer", *(f"What is {n} plus one?,{n},{n + 1},the violin {n},B" for n in range(6))]
    (tmp_path / "few_val.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    settings = EngineConfig(engine_command=program, engine_args="--enforce-eager")
    engine, _, _ = open_peer(ours.config, "vllm", settings, slots=4)

    def evaluated(**changes: Any) -> list[tuple[str, Any]]:
        args = {"general_mcq": {"local_path": str(tmp_path), "max_new_tokens": 12}}
        tree: dict[str, Any] = {"eval_dataset": ("general_mcq",), "dataset_args": args, "output_dir": str(tmp_path)}
        found = evaluate(validate(EvalConfig, tree | changes), Console(quiet=True))
        return [(one.prediction, one.detail) for one in found.measured.results["general_mcq", "few"]]

    with Blocking(engine):
        monkeypatch.setenv("A_KEY", engine.process.key)
        there: dict[str, Any] = {
            "model": {"path": "base"},
            "eval_url": f"{engine.process.address}/v1",
            "eval_key_env": "A_KEY",
        }
        weighed, written = evaluated(**there), evaluated(**there, method="generation")
    here = {"model": {"path": ours.config.path, "dtype": "float32"}}
    for (mine, detail), (theirs, told) in zip(evaluated(**here, apply_chat_template=False), weighed, strict=True):
        assert mine == theirs and told["chances"] == pytest.approx(detail["chances"], abs=0.005)
    assert [text for text, _ in written] == [text for text, _ in evaluated(**here, method="generation")]
