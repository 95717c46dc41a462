"""The process as a whole: it starts, serves, and ends in order (S4)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")


def deploy(*words: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "luthier", "deploy", "--json", "--port", "0", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and (told := json.loads(line))["type"] == "result":
            return process, told["url"]
    raise AssertionError(f"ended with {process.wait()}")


def post(url: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def test_eight_streams_end_before_the_process_does(tiny_model_dir: Callable[..., Path]) -> None:
    model = tiny_model_dir("qwen2", max_position_embeddings=2048, eos_token_id=None)
    process, url = deploy("--model", str(model), "--served_model_name", "m", "--slots", "8")
    ask = {"model": "m", "messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 300}
    ask |= {"guided_regex": "[ab]{160}"}  # random weights might end at once
    texts: list[str] = []
    try:
        streams = [
            threading.Thread(target=lambda: texts.append(post(f"{url}/chat/completions", {**ask, "stream": True})))
            for _ in range(8)
        ]
        for stream in streams:
            stream.start()
        root, limit = url.removesuffix("/v1"), time.monotonic() + 60
        while "luthier_running 8.0" not in urllib.request.urlopen(f"{root}/metrics").read().decode():
            assert time.monotonic() < limit
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{url}/chat/completions", ask)
        assert refused.value.code == 503 and json.loads(refused.value.read())["error"]["code"] == "stopping"
        with pytest.raises(urllib.error.HTTPError) as unready:
            urllib.request.urlopen(f"{root}/health/ready")
        assert unready.value.code == 503
        refused.value.close()
        unready.value.close()
        for stream in streams:
            stream.join(120)
        assert process.wait(30) == 0
        assert len(texts) == 8 and all(
            text.rstrip().endswith("[DONE]") and '"finish_reason":"stop"' in text for text in texts
        )
    finally:
        process.kill()
        process.communicate()


def test_a_second_signal_leaves_at_once(tiny_model_dir: Callable[..., Path]) -> None:
    model = tiny_model_dir("qwen2", max_position_embeddings=2048, eos_token_id=None)
    process, url = deploy("--model", str(model), "--served_model_name", "m")
    ask = {"model": "m", "prompt": "x", "max_tokens": 1900, "guided_regex": "[ab]{1800}", "stream": True}
    try:
        request = urllib.request.Request(f"{url}/completions", json.dumps(ask).encode())
        with urllib.request.urlopen(request, timeout=60) as stream:
            stream.readline()
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            process.wait(10)
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        command = [sys.executable, "-m", "luthier", "deploy", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        return done.stderr

    assert "without a key" in said("--model", "nano", "--host", "0.0.0.0")
    assert "did you mean" in said("--model", "nano", "--prot", "1").lower()
    assert "each name once" in said("--model", "nano", "--adapters", "a=x", "a=y")
