"""vLLM for real, on a CPU.  `tests/peer/vllm_env.sh DIR` makes its environment; then

LUTHIER_VLLM=DIR/bin/vllm python -m pytest -m peer tests/peer/test_vllm.py
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from luthier.generate.config import EngineConfig, SamplingConfig
from luthier.generate.request import Request
from luthier.model.config import ModelConfig
from luthier.run.peers import open_peer

PROGRAM = os.environ.get("LUTHIER_VLLM")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="LUTHIER_VLLM names no program"),
]


def test_greedy_answers_are_those_of_the_local_engine_also_after_a_kill(
    nano_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.generate.continuous import Continuous
    from luthier.run.opening import open_model

    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    settings = EngineConfig(engine_command=PROGRAM, engine_args="--enforce-eager")
    model = ModelConfig(path=str(nano_dir), dtype="float32")
    engine, manner, _ = open_peer(model, "vllm", settings, slots=4)
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
    local = Continuous(open_model(model, "cpu", print).model, stop_ids=manner.renderer.stop_ids)
    for request, one, other in zip(requests, before, after, strict=True):
        here = [(score.token, score.logprob) for piece in local.pieces(request) for score in piece.scores]
        assert [token for token, _ in one] == [token for token, _ in other] == [token for token, _ in here]
        assert max(abs(a[1] - b[1]) for a, b in zip(one, here, strict=True)) < 0.01
    local.close()
