"""`luthier eval` on a model behind an address: our own server, and one that tells log-probabilities of prompts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import Kitchen, Listening

from luthier.base.config import validate
from luthier.base.console import Console
from luthier.base.errors import ConfigError, RunError
from luthier.evaluate.config import EvalConfig
from luthier.run.evaluation import Evaluated, evaluate


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    (folder / "mcq").mkdir()
    rows = [f"{n},What is {n} plus one?,{n},{n + 1},{n + 2},none,B" for n in range(6)]
    (folder / "mcq/en_val.csv").write_text("\n".join(["id,question,A,B,C,D,answer", *rows]) + "\n", encoding="utf-8")
    asked = [{"query": f"What is {n}?", "response": f"It is {n}."} for n in range(3)]
    asked += [{"query": f"{n} 是什么？", "response": f"是 {n}。"} for n in range(3)]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    return folder


def run(sets: Path, out: Path, names: tuple[str, ...] = ("general_mcq", "general_qa"), **changes: Any) -> Evaluated:
    args = {
        "general_mcq": {"local_path": str(sets / "mcq"), "max_new_tokens": 5},
        "general_qa": {"local_path": str(sets / "qa.jsonl"), "max_new_tokens": 8},
    }
    tree: dict[str, Any] = {
        "eval_dataset": names,
        "dataset_args": {name: args[name] for name in names},
        "output_dir": str(out),
        **changes,
    }
    return evaluate(validate(EvalConfig, tree), Console(quiet=True))


def answers(found: Evaluated) -> list[tuple[str, str, Any]]:
    return [(one.key, one.prediction, dict(one.rates)) for rows in found.measured.results.values() for one in rows]


def test_our_own_server_writes_what_the_model_writes_here(
    tiny_model_dir: Callable[..., Path], sets: Path, tmp_path: Path
) -> None:
    folder = tiny_model_dir("qwen2", max_position_embeddings=1024)
    here = run(sets, tmp_path / "1", model={"path": str(folder), "dtype": "float32"}, method="generation")
    kitchen = Kitchen(folder)

    async def untold(*_: Any) -> Any:
        raise NotImplementedError

    kitchen.engine.weigh = untold  # type: ignore[method-assign]
    with Listening(kitchen.app()) as server:
        there = run(sets, tmp_path / "2", model={"path": "tiny"}, method="generation", eval_url=server.url)
        assert answers(there) == answers(here) and len(answers(here)) == 12
        with pytest.raises(ConfigError, match=r"does not tell how likely given texts are.*engine"):
            run(sets, tmp_path / "2", ("general_mcq",), model={"path": "tiny"}, eval_url=server.url)
        with pytest.raises(RunError, match=r"HTTP 404.*nobody"):
            run(sets, tmp_path / "2", ("general_qa",), model={"path": "nobody"}, eval_url=server.url)
    # What is answered is not asked again, also when the server has gone.
    again = run(sets, tmp_path / "2", model={"path": "tiny"}, method="generation", eval_url=server.url)
    assert answers(again) == answers(there)


class Oracle:
    """A server that tells log-probabilities of prompts, as plain transformers computes them."""

    def __init__(self, folder: Path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model, self.tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.refuse: Callable[[dict[str, Any]], bool] = lambda body: False
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.refuse(body):
            return 400, {"error": {"message": "this prompt is too long"}}
        if path == "/v1/chat/completions":
            return 200, {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
        read = self.tokenizer(body["prompt"], return_offsets_mapping=True, return_tensors="pt")
        ids, places = read["input_ids"][0], [start for start, _ in read["offset_mapping"][0].tolist()]
        with self.lock, torch.no_grad():
            scores = self.model(ids[None]).logits[0].float().log_softmax(-1)
        own = scores[:-1].gather(1, ids[1:, None])[:, 0].tolist()
        tops = [{"?": top} for top in scores.max(-1).values.tolist()]
        told = {
            "tokens": [str(one) for one in ids.tolist()] + ["x"],
            "token_logprobs": [None, *own, -1.0],
            "top_logprobs": [None, *tops],
            "text_offset": [*places, len(body["prompt"])],
        }
        return 200, {"choices": [{"text": body["prompt"] + "x", "logprobs": told, "finish_reason": "length"}]}


@pytest.fixture
def oracle(tiny_model_dir: Callable[..., Path]) -> Generator[tuple[Oracle, str]]:
    served = Oracle(tiny_model_dir("qwen2", max_position_embeddings=1024))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = served.answer(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("options_as", ["letter", "text"])
@pytest.mark.parametrize("server", ["oracle", "ours"])
def test_options_are_weighed_as_here_in_plain_text(
    server: str,
    options_as: str,
    oracle: tuple[Oracle, str],
    tiny_model_dir: Callable[..., Path],
    sets: Path,
    tmp_path: Path,
) -> None:
    folder = tiny_model_dir("qwen2", max_position_embeddings=1024)
    args = {"general_mcq": {"local_path": str(sets / "mcq"), "options_as": options_as}}
    model = {"path": str(folder), "dtype": "float32"}
    here = run(sets, tmp_path / "1", ("general_mcq",), model=model, apply_chat_template=False, dataset_args=args)
    with Listening(Kitchen(folder).app()) as ours:
        url = ours.url if server == "ours" else oracle[1]
        there = run(sets, tmp_path / "2", ("general_mcq",), model={"path": "tiny"}, eval_url=url, dataset_args=args)
    assert answers(there) == answers(here)
    for one, other in zip(*(x.measured.results["general_mcq", "en"] for x in (there, here)), strict=True):
        assert one.detail["chances"] == pytest.approx(other.detail["chances"], abs=1e-5)


def test_refused_questions_are_told_and_asked_again(oracle: tuple[Oracle, str], sets: Path, tmp_path: Path) -> None:
    served, url = oracle
    model = {"path": "oracle"}
    served.refuse = lambda body: "0 是什么" in body["messages"][-1]["content"]
    found = run(sets, tmp_path, ("general_qa",), model=model, eval_url=url)
    assert found.measured.refused == ['HTTP 400: {"error": {"message": "this prompt is too long"}}']
    assert "1 questions were refused and count as wrong" in (found.folder / "report.md").read_text(encoding="utf-8")
    assert [one.prediction for one in found.measured.results["general_qa", "qa"]] == [""] * 6
    served.refuse = lambda body: False
    assert run(sets, tmp_path, ("general_qa",), model=model, eval_url=url).measured.refused == []
    served.refuse = lambda body: True
    with pytest.raises(RunError, match="too long"):
        run(sets, tmp_path / "2", ("general_qa",), model=model, eval_url=url)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": {"path": ""}}, "no model was named"),
        ({"eval_url": "127.0.0.1:8000"}, "must begin with http"),
        ({"model": {"path": "x", "adapters": ("y",)}}, "the server decides this"),
        ({"backend": "vllm"}, "the server decides this"),
        ({"eval_dataset": ("perplexity",), "dataset_args": {}}, "read by models in this process only"),
        ({"apply_chat_template": True}, "weighed in plain text"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], why: str, sets: Path, tmp_path: Path) -> None:
    base: dict[str, Any] = {"model": {"path": "x"}, "eval_url": "http://127.0.0.1:9/v1"}
    if "eval_dataset" in changes:
        changes = {**changes, "dataset_args": {"perplexity": {"local_path": str(sets / "qa.jsonl")}}}
        (sets / "texts.jsonl").write_text('{"text": "one"}\n', encoding="utf-8")
        changes["dataset_args"]["perplexity"]["local_path"] = str(sets / "texts.jsonl")
    with pytest.raises(ConfigError, match=why):
        run(sets, tmp_path, ("general_mcq",), **(base | changes))
