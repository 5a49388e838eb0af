"""The server under load, beside llama-cpp-python's server on the same GGUF file.

Open loop: requests arrive at random moments (a Poisson process), whether or not earlier ones are
answered, as they do from people. Closed loop: a number of clients that each send the next request when
the last is answered, which shows the most that a server can do. Every prompt begins differently, so that
no prefix cache helps; the last measurement is of a chat's second turn, where it should.

Both servers are started here, one after the other, and streamed from by the same client. llama-cpp-python's
server answers one request at a time; it runs with interrupt_requests=False, without which a new request
would cut off the one before it.

    pip install 'bitqwen[test]' fastapi sse-starlette starlette-context
    python benchmarks/serve_load.py [MODEL.gguf] [--threads 2] [--clients 1,4,8] [--save FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import machine

from bitqwen.checkpoints import packages

WORDS = ["river", "stone", "paper", "window", "garden", "engine", "letter", "number", "circle", "market"]


@dataclass
class Sample:
    """One request as its client saw it; seconds."""

    arrived: float
    pieces: list[float] = field(default_factory=list)  # when each piece of text came
    failed: str = ""

    @property
    def first(self) -> float:
        return self.pieces[0] - self.arrived

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.pieces, self.pieces[1:], strict=False)]


class Server:
    """A server process; ``command`` makes its command line from a port."""

    def __init__(self, name: str, command: Callable[[int], list[str]]) -> None:
        self.name = name
        self._command = command

    @asynccontextmanager
    async def running(self) -> AsyncIterator[httpx.AsyncClient]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            self._command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ
        )
        limits = httpx.Limits(max_connections=None)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}", timeout=900, limits=limits
            ) as client:
                await self._until_ready(client, process)
                yield client
        finally:
            process.terminate()
            process.wait(timeout=60)

    async def _until_ready(self, client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None:
            try:
                if (await client.get("/v1/models")).json()["data"]:
                    return
            except (httpx.TransportError, ValueError, KeyError):
                pass
            await asyncio.sleep(0.2)
        raise SystemExit(f"{self.name} did not start: {' '.join(self._command(0))}")


def servers(model: Path, options: argparse.Namespace) -> list[Server]:
    context = str(options.context)
    ours = [sys.executable, "-m", "bitqwen", "serve", str(model), "--context", context]
    ours += [
        "--threads",
        str(options.threads),
        "--alias",
        "load",
        "--cache-positions",
        str(16 * options.context),
    ]
    theirs = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--n_ctx", context]
    theirs += ["--n_threads", str(options.threads), "--n_threads_batch", str(options.threads)]
    theirs += ["--model_alias", "load", "--interrupt_requests", "False"]
    both = [
        Server("bitqwen", lambda port: [*ours, "--port", str(port)]),
        Server("llama-cpp-python", lambda port: [*theirs, "--port", str(port)]),
    ]
    return [server for server in both if server.name in options.servers.split(",")]


def prompt(rng: random.Random, words: int) -> str:
    return f"{rng.random()} " + " ".join(rng.choices(WORDS, k=words))


async def ask(client: httpx.AsyncClient, text: str, tokens: int) -> Sample:
    """Streams one completion; greedy, to its full length as far as the model goes on."""
    sample = Sample(time.perf_counter())
    body = {"model": "load", "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                sample.failed = f"{response.status_code}: {response.text[:100]}"
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    if any(choice["text"] for choice in chunk.get("choices", ())):
                        sample.pieces.append(time.perf_counter())
    except httpx.TransportError as error:
        sample.failed = repr(error)
    if not sample.pieces and not sample.failed:
        sample.failed = "no text"
    return sample


async def open_loop(client: httpx.AsyncClient, rate: float, options: argparse.Namespace) -> list[Sample]:
    rng = random.Random(1)
    tasks: list[asyncio.Task[Sample]] = []
    started = time.perf_counter()
    while (now := time.perf_counter() - started) < options.seconds or not tasks:
        tasks.append(asyncio.create_task(ask(client, prompt(rng, options.words), options.tokens)))
        await asyncio.sleep(min(rng.expovariate(rate), max(0.0, options.seconds - now)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(client: httpx.AsyncClient, clients: int, options: argparse.Namespace) -> list[Sample]:
    async def one(number: int) -> list[Sample]:
        rng = random.Random(number)
        return [
            await ask(client, prompt(rng, options.words), options.tokens) for _ in range(options.requests)
        ]

    made = await asyncio.gather(*(one(number) for number in range(clients)))
    return [sample for samples in made for sample in samples]


def summary(samples: list[Sample]) -> dict[str, Any]:
    good = [sample for sample in samples if not sample.failed]
    row: dict[str, Any] = {
        "requests": len(samples),
        "failed": sorted({sample.failed for sample in samples if sample.failed}),
    }
    if good:
        seconds = max(sample.pieces[-1] for sample in good) - min(sample.arrived for sample in good)
        gaps = [gap for sample in good for gap in sample.gaps]
        row |= {
            "tokens_per_second": sum(len(sample.pieces) for sample in good) / seconds,
            "first_p50": percentile([sample.first for sample in good], 50),
            "first_p95": percentile([sample.first for sample in good], 95),
            "gap_p50": percentile(gaps, 50),
            "gap_p95": percentile(gaps, 95),
        }
    return row


def percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


async def second_turn(client: httpx.AsyncClient, options: argparse.Namespace) -> dict[str, float]:
    """Time to the first token of a long conversation, and of the same with one more question."""
    history = prompt(random.Random(7), options.history)
    first = await ask(client, history, 8)
    second = await ask(client, history + "\n\nAnd then?", 8)
    return {"first": first.first, "second": second.first} if first.pieces and second.pieces else {}


async def measure(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"server": server.name}
    async with server.running() as client:
        await ask(client, "warm up", 4)
        steps: list[tuple[str, Coroutine[Any, Any, list[Sample]]]] = [
            *(
                (f"{count} clients", closed_loop(client, count, options))
                for count in map(int, filter(None, options.clients.split(",")))
            ),
            *(
                (f"{rate} requests/s", open_loop(client, rate, options))
                for rate in map(float, filter(None, options.rates.split(",")))
            ),
        ]
        for name, step in steps:
            row = results[name] = summary(await step)
            print_row(server.name, name, row)
        if options.history:
            turns = results["second turn"] = await second_turn(client, options)
            if turns:
                print(
                    f"{server.name:18} second turn: {turns['second']:.2f} s to the first token, "
                    f"after {turns['first']:.2f} s in the first"
                )
    return results


def print_row(server: str, name: str, row: dict[str, Any]) -> None:
    if "tokens_per_second" not in row:
        print(f"{server:18} {name:>16}  failed: {row['failed']}")
        return
    print(
        f"{server:18} {name:>16}  {row['tokens_per_second']:7.1f} tokens/s   first token p50 "
        f"{row['first_p50']:6.2f} s, p95 {row['first_p95']:6.2f} s   between tokens p50 "
        f"{row['gap_p50'] * 1000:5.0f} ms, p95 {row['gap_p95'] * 1000:5.0f} ms   "
        f"{row['requests']} requests, {len(row['failed'])} kinds of failure",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--servers", default="bitqwen,llama-cpp-python")
    parser.add_argument("--clients", default="1,4,8,16", help="closed loop: clients at once")
    parser.add_argument("--requests", type=int, default=2, help="closed loop: requests of each client")
    parser.add_argument("--rates", default="0.2", help="open loop: requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="open loop: how long they arrive")
    parser.add_argument("--words", type=int, default=64, help="of a prompt; about as many tokens")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument(
        "--history", type=int, default=2000, help="words of the chat's history; 0 leaves it out"
    )
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    model = options.model or packages.fetch("qwen2.5-coder-1.5b")
    print(json.dumps(machine.describe()))
    results = [asyncio.run(measure(server, options)) for server in servers(model, options)]
    if options.save:
        machine.save(options.save, "serve_load", results)


if __name__ == "__main__":
    main()
