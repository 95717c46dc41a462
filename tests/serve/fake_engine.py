"""A process that behaves like vLLM or SGLang as far as a proxy sees: it counts up from the last token of the prompt.

    fake_engine.py MODEL --port N ...

Files in the folder $FAKE steer it: `deaf` makes it answer no question about its health, `slow` puts time between
tokens, `stillborn` ends it at once.  What it was asked is added to `asked.jsonl` there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["FAKE"])


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        deaf = (FOLDER / "deaf").exists()
        if deaf:
            time.sleep(30)
        self.reply(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with (FOLDER / "asked.jsonl").open("a") as file:
            row = {"path": self.path, "body": body, "key": self.headers.get("Authorization"), "pid": os.getpid()}
            file.write(json.dumps(row) + "\n")
        if "lora_path" in body and "lora_name" in body:
            known = Path(body["lora_path"]).exists()
            self.reply(200 if known else 404, {} if known else {"error": "no such adapter"})
        elif "prompt" in body and max(body["prompt"]) > 1000:
            self.reply(400, {"error": {"message": "unknown token"}})
        else:
            self.send_response(200)
            self.end_headers()
            self.answer(body)

    def answer(self, body: dict[str, Any]) -> None:
        """Tokens one above the other, until a stop token or the limit."""
        settings = body.get("sampling_params", body)
        first = (body.get("prompt") or body["input_ids"])[-1]
        most = settings.get("max_tokens") or settings["max_new_tokens"]
        ids: list[int] = []
        while True:
            ids.append(first + 1 + len(ids))
            stopped = ids[-1] in settings["stop_token_ids"]
            reason = "stop" if stopped else "length" if len(ids) == most else None
            self.say(self.vllm(ids[-1], reason, body) if "prompt" in body else self.sglang(ids, reason, body))
            if reason:
                break
            time.sleep(0.2 if (FOLDER / "slow").exists() else 0.0)
        if "prompt" in body:
            self.wfile.write(b"data: [DONE]\n\n")

    def vllm(self, token: int, reason: str | None, body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "text": "?", "token_ids": [token], "finish_reason": reason}
        if body.get("logprobs") is not None:
            tops = [{f"token_id:{token}": -0.5, "token_id:7": -1.5}]
            choice["logprobs"] = {"tokens": [f"token_id:{token}"], "token_logprobs": [-0.5], "top_logprobs": tops}
        return {"choices": [choice]}

    def sglang(self, ids: list[int], reason: str | None, body: dict[str, Any]) -> dict[str, Any]:
        told: dict[str, Any] = {"completion_tokens": len(ids), "finish_reason": {"type": reason} if reason else None}
        if body.get("return_logprob"):
            told["output_token_logprobs"] = [[-0.5, token, None] for token in ids]
            told["output_top_logprobs"] = [[[-0.5, token, None], [-1.5, 7, None]] for token in ids]
        return {"text": "?", "output_ids": ids, "meta_info": told}

    def say(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def reply(self, status: int, value: dict[str, Any]) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    print("starting with", *sys.argv[1:], file=sys.stderr)
    if (FOLDER / "stillborn").exists():
        sys.exit("no memory for keys and values")
    name = "--server-port" if "--server-port" in sys.argv else "--port"
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index(name) + 1])), Handler).serve_forever()
