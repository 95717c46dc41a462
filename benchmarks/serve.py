"""Requests a second and time to the first token: `luthier deploy` against `transformers serve`, one machine, one run.

    pip install 'transformers[serving]'
    python benchmarks/serve.py [--rounds 3] [--requests 32] [--threads 1] [--continuous]

Both serve the bundled model in float32 on the CPU to the same OpenAI client, which streams greedy chats in two
languages; each is measured while the others stand idle, in turns.  Processor seconds are the server's own, so that
they hold on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from openai import AsyncOpenAI

from luthier.model.nano import nano_folder

QUESTIONS = [
    "Who are you?",
    "你叫什么名字？",
    "Tell me about the violin.",
    "讲一讲小提琴的历史。",
    "What is the capital of France?",
    "今天天气怎么样？",
    "Write a short poem about wood.",
    "请用一句话介绍你自己。",
]


@dataclass
class Server:
    name: str
    command: list[str]
    model: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    rows: dict[int, list[tuple[float, float, float, float, int]]] = field(default_factory=dict)
    """by number of clients: requests/s, first token (median, s), (95 %), processor s a request, tokens"""

    def start(self, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            self.command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        limit = time.monotonic() + 300
        while time.monotonic() < limit:
            assert self.process.poll() is None, f"{self.name} ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v1/models", timeout=30).read()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise SystemExit(f"{self.name} does not start")

    def cost(self) -> tuple[float, float]:
        """Processor seconds and memory (MiB) until now."""
        assert self.process is not None
        top = psutil.Process(self.process.pid)
        family = [top, *top.children(recursive=True)]
        times = [member.cpu_times() for member in family]
        memory = sum(member.memory_info().rss for member in family)
        return sum(one.user + one.system for one in times), memory / 2**20


async def ask(client: AsyncOpenAI, server: Server, question: str, tokens: int) -> tuple[float, int]:
    """Seconds to the first text, and the number of pieces of text."""
    began, first, pieces = time.perf_counter(), 0.0, 0
    stream: Any = await client.chat.completions.create(
        model=server.model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
    )
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            pieces += 1
            first = first or time.perf_counter() - began
    return first, pieces


async def measure(server: Server, clients: int, requests: int, tokens: int, salt: int) -> None:
    """One round: so many clients ask one question after the other."""
    waiting = iter([f"{QUESTIONS[n % len(QUESTIONS)]} ({salt}.{n})" for n in range(requests)])
    found: list[tuple[float, int]] = []
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", timeout=600) as client:

        async def one() -> None:
            for question in waiting:
                found.append(await ask(client, server, question, tokens))

        before, began = server.cost()[0], time.perf_counter()
        await asyncio.gather(*(one() for _ in range(clients)))
        seconds, spent = time.perf_counter() - began, server.cost()[0] - before
    firsts = sorted(first for first, _ in found if first)
    row = (
        requests / seconds,
        statistics.median(firsts),
        firsts[int(0.95 * (len(firsts) - 1))],
        spent / requests,
        sum(pieces for _, pieces in found),
    )
    server.rows.setdefault(clients, []).append(row)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--continuous", action="store_true", help="also measure transformers' continuous batching")
    options = parser.parse_args()
    folder = str(nano_folder())
    peer = str(Path(sys.executable).with_name("transformers"))
    ports = [free_port() for _ in range(3)]
    common = [peer, "serve", folder, "--device", "cpu", "--dtype", "float32", "--port"]
    servers = [
        Server(
            "luthier deploy",
            [sys.executable, "-m", "luthier", "deploy", "--model", "nano", "--port", str(ports[0])],
            "nano",
            ports[0],
        ),
        Server("transformers serve", [*common, str(ports[1])], folder, ports[1]),
    ]
    if options.continuous:  # it takes half of the machine's memory for its cache
        words = [*common, str(ports[2]), "--continuous-batching"]
        servers.append(Server("transformers serve, continuous", words, folder, ports[2]))
    try:
        for server in servers:
            server.start(options.threads)
            asyncio.run(measure(server, 2, 4, 8, 0))
        for server in servers:
            server.rows.clear()
        for number in range(options.rounds):
            for clients in options.clients:
                for server in servers:
                    asyncio.run(measure(server, clients, options.requests, options.tokens, number + 1))
        print(
            f"{'':32}{'clients':>8}{'requests/s':>12}{'first token':>13}{'95 %':>9}{'CPU s/request':>15}{'pieces':>8}"
        )
        for clients in options.clients:
            for server in servers:
                columns = [statistics.median(column) for column in zip(*server.rows[clients], strict=True)]
                rate, first, late, spent, pieces = columns
                print(f"{server.name:32}{clients:8}{rate:12.2f}{first:11.3f} s{late:7.2f} s{spent:15.3f}{pieces:8.0f}")
        for server in servers:
            print(f"{server.name:32} memory {server.cost()[1]:,.0f} MiB")
    finally:
        for server in servers:
            if server.process is not None:
                server.process.terminate()
                server.process.wait(20)


if __name__ == "__main__":
    main()
