"""GGUF files in llama.cpp itself, through the package xllamacpp, in an environment of its own:

python -m venv DIR && DIR/bin/pip install xllamacpp
LUTHIER_LLAMA_CPP=DIR/bin/python python -m pytest -m peer tests/peer/test_llama_cpp.py
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from luthier.base.console import Console
from luthier.base.records import Message
from luthier.export.config import ExportConfig
from luthier.generate.config import SamplingConfig
from luthier.generate.request import Request
from luthier.model.config import ModelConfig
from luthier.run.export import export

PROGRAM = "LUTHIER_LLAMA_CPP"
pytestmark = [pytest.mark.peer, pytest.mark.slow]
TOKENS = 24
QUESTIONS = [
    "Who are you?",
    "你叫什么名字？",
    "Tell me about the violin.",
    "讲一讲小提琴的历史。",
    "Write <|im_end|> !",
]
ASK = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
server = xllamacpp.Server(params)
told = []
for prompt in json.loads(sys.argv[2]):
    told.append(server.handle_completions({
        "prompt": prompt, "max_tokens": int(sys.argv[3]), "temperature": 0, "logprobs": 1, "cache_prompt": False,
    }))
print("TOLD" + json.dumps(told))
"""


LARGEST = {"f16": 0.01, "q8_0": 0.2}


@pytest.mark.parametrize("kind", LARGEST)
def test_greedy_answers_and_their_likelihoods_are_ours(kind: str, program: str, ours: Any, tmp_path: Path) -> None:
    out, largest = tmp_path / kind, LARGEST[kind]
    settings: dict[str, Any] = {
        "model": ModelConfig(path=ours.config.path), "to_gguf": True, "gguf_type": kind, "output_dir": str(out),
    }  # fmt: skip
    export(ExportConfig(**settings), Console(quiet=True))
    renderer = ours.opened.manner.renderer
    prompts = [renderer.prompt([Message("user", text)]) for text in QUESTIONS]
    words = [program, "-c", ASK, str(next(out.glob("*.gguf"))), json.dumps(prompts), str(TOKENS)]
    told = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout
    theirs = json.loads(next(line for line in told.splitlines() if line.startswith("TOLD"))[4:])
    differences: list[float] = []
    for prompt, answer in zip(prompts, theirs, strict=True):
        request = Request(tuple(prompt), SamplingConfig(max_new_tokens=TOKENS), logprobs=20)
        mine = [score for piece in ours.generator.pieces(request) for score in piece.scores]
        found = [(one["id"], one["logprob"]) for one in answer["choices"][0]["logprobs"]["content"]]
        for score in mine:
            token, logprob = found[0] if found else (-1, 0.0)
            near = dict(score.likeliest)
            if score.token != token and token in near and score.logprob - near[token] < 2 * largest:
                break  # both choices are nearly as likely, and rounding decides
            if score.token != token:  # llama.cpp does not tell tokens that begin a character and do not end it
                assert "\ufffd" in str(renderer.tokenizer.decode([score.token])), (prompt, score, token)
                continue
            found.pop(0)
            differences.append(abs(score.logprob - logprob))
    assert len(differences) > 0.7 * TOKENS * len(prompts) or kind != "f16"
    mean = sum(differences) / len(differences)
    print(f"{kind}: {len(differences)} tokens, largest difference {max(differences):.5f}, mean {mean:.6f}")
    assert max(differences) < largest
