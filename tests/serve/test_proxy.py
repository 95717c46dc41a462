"""Engines of others behind our interface: what they are asked, what becomes of their streams, and how they fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx2")

from luthier.base.errors import ConfigError, DataError, RunError
from luthier.generate.config import SamplingConfig
from luthier.generate.request import Form, Piece, Request
from luthier.model.config import ModelConfig
from luthier.model.load import load_tokenizer
from luthier.serve import process as room
from luthier.serve.dialects import dialect
from luthier.serve.engines import EngineFailed
from luthier.serve.launch import Serving, command_line, environment
from luthier.serve.process import MissingProgram
from luthier.serve.proxy import ProxyEngine

FAKE = Path(__file__).parent / "fake_engine.py"
STOP = 300


@pytest.fixture
def tokenizer(tiny_model_dir: Callable[..., Path]) -> Any:
    return load_tokenizer(ModelConfig(path=str(tiny_model_dir())))


def serving(folder: Path, peer: Any = "vllm", **changes: Any) -> Serving:
    return Serving(
        peer,
        "a model",
        max_length=128,
        slots=4,
        command=f"{sys.executable} {FAKE}",
        environment={"FAKE": str(folder)},
        **changes,
    )


@asynccontextmanager
async def running(folder: Path, tokenizer: Any, peer: Any = "vllm", **changes: Any) -> AsyncIterator[ProxyEngine]:
    engine = ProxyEngine(serving(folder, peer, **changes), tokenizer, {STOP}, patience=60.0, pause=0.05)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.close()


async def pieces(engine: ProxyEngine, last: int, most: int = 8, **settings: Any) -> list[Piece]:
    logprobs, form = settings.pop("logprobs", None), settings.pop("form", None)
    sampling = SamplingConfig(max_new_tokens=most, **settings)
    request = Request((5, last), sampling, form=form, logprobs=logprobs)
    return [piece async for piece in engine.stream(request)]


def asked(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("peer", ["vllm", "sglang", "lmdeploy"])
def test_answers_are_tokens_and_our_own_text(peer: str, tokenizer: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, tokenizer, peer) as engine:
            assert engine.trouble() is None
            found = await pieces(engine, 79)
            ids = [token for piece in found for token in piece.ids]
            assert ids == list(range(80, 88)) and found[-1].finish_reason == "length"
            assert "".join(piece.text for piece in found) == tokenizer.decode(ids)
            ended = await pieces(engine, STOP - 3)
            assert ended[-1].finish_reason == "stop" and [t for p in ended for t in p.ids][-1] == STOP

    asyncio.run(main())
    key = asked(tmp_path)[0]["key"]
    assert key.startswith("Bearer ") and len(key) > 30, "nobody else on this machine may use it"


@pytest.mark.parametrize("peer", ["vllm", "sglang"])
def test_logprobs(peer: str, tokenizer: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, tokenizer, peer) as engine:
            found = await pieces(engine, 79, most=3, logprobs=2)
            scores = [score for piece in found for score in piece.scores]
            assert [(score.token, score.logprob) for score in scores] == [(80, -0.5), (81, -0.5), (82, -0.5)]
            assert scores[1].likeliest == ((81, -0.5), (7, -1.5))

    asyncio.run(main())


def test_stop_strings_end_the_work(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    word = tokenizer.decode([82])

    async def main() -> None:
        async with running(tmp_path, tokenizer) as engine:
            found = await pieces(engine, 79, most=40, stop=(word,))
            assert "".join(piece.text for piece in found) == tokenizer.decode([80, 81])
            assert found[-1].finish_reason == "stop" and engine.load().running == 0

    asyncio.run(main())


def test_what_the_client_did_wrong(tokenizer: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, tokenizer, "sglang") as engine:
            with pytest.raises(DataError, match="form"):
                await pieces(engine, 79, form=Form("lark", "start: /a/"))
        async with running(tmp_path, tokenizer) as engine:
            with pytest.raises(DataError, match="unknown token"):
                await pieces(engine, 5000)
            with pytest.raises(DataError, match="no room"):
                await anext(engine.stream(Request(tuple(range(1, 129)), SamplingConfig())))
            form = Form("json", '{"type": "object"}')
            await pieces(engine, 79, form=form, temperature=0.5, seed=3)
            assert asked(tmp_path)[-1]["body"]["structured_outputs"] == {"json": {"type": "object"}}

    asyncio.run(main())


def test_killed_engine_fails_its_answers_restarts_and_recovers(tokenizer: Any, tmp_path: Path) -> None:
    """S5: in-flight 500, not ready, restarts, recovers; adapters are there again."""
    (tmp_path / "slow").touch()
    (tmp_path / "adapter").mkdir()

    async def main() -> None:
        async with running(tmp_path, tokenizer, adapters=True) as engine:
            await engine.add_adapter("poet", [str(tmp_path / "adapter")])
            under_way = [asyncio.create_task(pieces(engine, 79, most=100)) for _ in range(4)]
            while not (tmp_path / "asked.jsonl").exists() or len(asked(tmp_path)) < 5:
                await asyncio.sleep(0.05)
            first = engine.process.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            results = await asyncio.gather(*under_way, return_exceptions=True)
            assert all(isinstance(result, EngineFailed) for result in results), results
            while engine.trouble() is None:
                await asyncio.sleep(0.01)
            with pytest.raises(EngineFailed, match="died"):
                await pieces(engine, 79)
            while engine.trouble() is not None:
                await asyncio.sleep(0.05)
            assert engine.process.pid != first and engine.load().running == 0
            assert (await pieces(engine, 79, most=2))[-1].finish_reason == "length"
            loads = [row["pid"] for row in asked(tmp_path) if row["path"] == "/v1/load_lora_adapter"]
            assert loads == [first, engine.process.pid]
            last = engine.process.pid
        assert last is not None and not alive(last) and not alive(first)

    asyncio.run(main())


def test_engine_that_no_longer_answers_is_restarted(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "WATCH", 0.2)
    monkeypatch.setattr(room, "DEAF", 2)

    async def main() -> None:
        async with running(tmp_path, tokenizer) as engine:
            first = engine.process.pid
            (tmp_path / "deaf").touch()
            while engine.trouble() is None:
                await asyncio.sleep(0.05)
            assert "no longer answers" in str(engine.trouble())
            (tmp_path / "deaf").unlink()
            monkeypatch.setattr(room, "WATCH", 5.0)
            while engine.trouble() is not None:
                await asyncio.sleep(0.05)
            assert engine.process.pid != first

    asyncio.run(main())


def test_engine_that_does_not_start_says_why(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "stillborn").touch()

    async def main() -> None:
        with pytest.raises(RunError, match="no memory for keys and values"):
            async with running(tmp_path, tokenizer):
                pass

    asyncio.run(main())


def test_engine_that_cannot_be_started_again_is_given_up(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "TRIES", 2)

    async def main() -> None:
        async with running(tmp_path, tokenizer) as engine:
            (tmp_path / "stillborn").touch()
            assert engine.process.pid is not None
            os.kill(engine.process.pid, signal.SIGKILL)
            while "could not be started again" not in str(engine.trouble()):
                await asyncio.sleep(0.05)
            with pytest.raises(EngineFailed, match="could not be started again"):
                await pieces(engine, 79)

    asyncio.run(main())


def test_adapters(tokenizer: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, tokenizer, adapters=True) as engine:
            with pytest.raises(RunError, match="no such adapter"):
                await engine.add_adapter("poet", [str(tmp_path / "missing")])
            with pytest.raises(ConfigError, match="add adapters up"):
                await engine.add_adapter("poet", ["a", "b"])
            (tmp_path / "adapter").mkdir()
            await engine.add_adapter("poet", [str(tmp_path / "adapter")])
            request = Request((5, 79), SamplingConfig(max_new_tokens=1), adapter="poet")
            _ = [piece async for piece in engine.stream(request)]
            assert asked(tmp_path)[-1]["body"]["model"] == "poet"
            await engine.remove_adapter("poet")
            assert asked(tmp_path)[-1]["path"] == "/v1/unload_lora_adapter"

    asyncio.run(main())


def test_program_that_is_not_there(tokenizer: Any) -> None:
    missing = Serving("vllm", "m", 128, 4, command="no-such-vllm")
    with pytest.raises(MissingProgram, match="environment of its own"):
        asyncio.run(ProxyEngine(missing, tokenizer, {STOP}).start())


@pytest.mark.parametrize("peer", ["vllm", "sglang", "lmdeploy"])
def test_command_lines_bind_to_the_loopback(peer: Any) -> None:
    words = command_line(Serving(peer, "/m", 4096, 16, dtype="bfloat16", revision="v1", arguments="--a 'b c'"), 7, "k")
    assert words[words.index("127.0.0.1") - 1] in ("--host", "--server-name")
    assert "/m" in words and "4096" in words and "16" in words and "7" in words and words[-2:] == ["--a", "b c"]
    assert "0.0.0.0" not in words and not any("trust" in word for word in words)


def test_command_lines_of_adapters_and_rounding() -> None:
    words = command_line(Serving("vllm", "/m", 64, 2, adapters=True, max_rank=12, quantization="bitsandbytes"), 7, "k")
    assert (
        words[words.index("--max-lora-rank") + 1] == "16" and words[words.index("--quantization") + 1] == "bitsandbytes"
    )
    assert "k" not in words, "vLLM takes its key from the environment, where others do not see it"
    with pytest.raises(ConfigError, match="no adapters"):
        command_line(Serving("lmdeploy", "/m", 64, 2, adapters=True), 7, "k")
    with pytest.raises(ConfigError, match="up to rank 512"):
        command_line(Serving("vllm", "/m", 64, 2, adapters=True, max_rank=1000), 7, "k")
    with pytest.raises(ConfigError, match="does not round"):
        command_line(Serving("sglang", "/m", 64, 2, quantization="bitsandbytes"), 7, "k")


def test_environment_has_no_keys_of_ours() -> None:
    own = {"PATH": "/bin", "LUTHIER_API_KEY": "s", "OPENAI_API_KEY": "s", "CUDA_VISIBLE_DEVICES": "0"}
    found = environment(Serving("vllm", "/m", 64, 2), "k", own)
    assert "s" not in found.values() and found["CUDA_VISIBLE_DEVICES"] == "0" and found["VLLM_API_KEY"] == "k"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_biases_are_handed_on_or_refused() -> None:
    request = Request((1, 2), SamplingConfig(), bias=((5, -100.0), (7, 2.5)))
    assert dialect("vllm").body(request, 4, ())["logit_bias"] == {"5": -100.0, "7": 2.5}
    assert dialect("sglang").body(request, 4, ())["sampling_params"]["logit_bias"] == {"5": -100.0, "7": 2.5}
    with pytest.raises(DataError, match="logit_bias"):
        dialect("lmdeploy").body(request, 4, ())
