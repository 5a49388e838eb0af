"""The server under load, beside llama.cpp's on the same GGUF file.

Closed loop: a number of clients that each send the next request when the last is answered, which shows the
most that a server can do. Open loop: requests arrive at random moments (a Poisson process), whether or not
earlier ones are answered, as they do from people. Every prompt begins differently, so that no prefix cache
helps; the last measurement is of a chat's second turn, where it should. Lengths vary, the
same ones for each server.

The servers are started here, one after the other, and streamed from by the same client. llama-server (of a
build folder given by --llama-server) has as many slots as there are clients at most; the server of
llama-cpp-python answers one request at a time.

    pip install 'bitqwen[test]'
    python benchmarks/serve_load.py MODEL.gguf --llama-server build/bin/llama-server --save load.json
    python benchmarks/serve_load.py OTHER.gguf --servers bitqwen --label w2 --save load-w2.json
    python benchmarks/serve_load_plot.py load.json load-w2.json --output serve_load.svg
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
from functools import partial
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
    tokens: int = 0  # as the server counts them, or else the pieces
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
        # A new connection for each request: llama-server sometimes closes one that is about to be used.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
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
                health = await client.get("/health")
                if health.status_code == 200:
                    return
                # llama-cpp-python's server has none
                if health.status_code == 404 and (await client.get("/v1/models")).json()["data"]:
                    return
            except (httpx.TransportError, ValueError, KeyError):
                pass
            await asyncio.sleep(0.2)
        raise SystemExit(f"{self.name} did not start: {' '.join(self._command(0))}")


def servers(model: Path, options: argparse.Namespace) -> list[Server]:
    threads, slots = str(options.threads), max(map(int, [*filter(None, options.clients.split(",")), 16]))
    ours = [sys.executable, "-m", "bitqwen", "serve", str(model), "--context", str(options.context)]
    ours += ["--threads", threads, "--alias", "load", "--cache-positions", str(slots * options.context)]
    ours += ["--max-batch", str(slots)]
    theirs = [str(options.llama_server), "--model", str(model), "--ctx-size", str(slots * options.context)]
    theirs += ["--parallel", str(slots), "--threads", threads, "--threads-batch", threads, "--alias", "load"]
    python = [sys.executable, "-m", "llama_cpp.server", "--model", str(model)]
    python += ["--n_ctx", str(options.context), "--n_threads", threads, "--n_threads_batch", threads]
    python += ["--model_alias", "load", "--interrupt_requests", "False"]
    known = {"bitqwen": ours, "llama-server": theirs, "llama-cpp-python": python}
    chosen = options.servers.split(",")
    if unknown := set(chosen) - set(known):
        raise SystemExit(f"there is no server {', '.join(unknown)}; known: {', '.join(known)}")
    if "llama-server" in chosen and options.llama_server is None:
        raise SystemExit("llama-server needs --llama-server PATH")
    return [Server(name, partial(_with_port, known[name])) for name in chosen]


def _with_port(command: list[str], port: int) -> list[str]:
    return [*command, "--port", str(port)]


def prompt(rng: random.Random, words: int) -> str:
    return f"{rng.random()} " + " ".join(rng.choices(WORDS, k=words))


async def ask_once(client: httpx.AsyncClient, rng: random.Random, options: argparse.Namespace) -> Sample:
    """A prompt and an answer between half and one and a half times as long as the options say.

    Answers of one length would keep closed loops in step, so that no prompt is read while others write.
    """
    words, tokens = (round(length * rng.uniform(0.5, 1.5)) for length in (options.words, options.tokens))
    return await ask(client, prompt(rng, words), tokens)


async def ask(client: httpx.AsyncClient, text: str, tokens: int) -> Sample:
    """Streams one completion; greedy, to its full length."""
    sample = Sample(time.perf_counter())
    body = {"model": "load", "prompt": text, "max_tokens": tokens, "temperature": 0, "stream": True}
    body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                sample.failed = f"{response.status_code}: {response.text[:100]}"
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    chunk = json.loads(line.removeprefix("data: "))
                    sample.tokens = (chunk.get("usage") or {}).get("completion_tokens", sample.tokens)
                    if any(choice["text"] for choice in chunk.get("choices", ())):
                        sample.pieces.append(time.perf_counter())
    except httpx.TransportError as error:
        sample.failed = repr(error)
    sample.tokens = sample.tokens or len(sample.pieces)
    if not sample.pieces and not sample.failed:
        sample.failed = "no text"
    return sample


async def open_loop(client: httpx.AsyncClient, rate: float, options: argparse.Namespace) -> list[Sample]:
    rng = random.Random(f"{rate} requests/s")
    tasks: list[asyncio.Task[Sample]] = []
    started = time.perf_counter()
    while (now := time.perf_counter() - started) < options.seconds or not tasks:
        # Each has its own numbers, so that requests are the same whatever the server's speed.
        own = random.Random(rng.random())
        tasks.append(asyncio.create_task(ask_once(client, own, options)))
        await asyncio.sleep(min(rng.expovariate(rate), max(0.0, options.seconds - now)))
    return list(await asyncio.gather(*tasks))


async def closed_loop(client: httpx.AsyncClient, clients: int, options: argparse.Namespace) -> list[Sample]:
    async def one(number: int) -> list[Sample]:
        # No prompt is that of another load: it would be in the servers' caches.
        rng = random.Random(f"client {number} of {clients}")
        return [await ask_once(client, rng, options) for _ in range(options.requests)]

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
            "tokens_per_second": sum(sample.tokens for sample in good) / seconds,
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


async def measure(server: Server, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {"server": server.name, "label": options.label, "model": model.name}
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
    parser.add_argument("--servers", default="bitqwen,llama-server", help="also: llama-cpp-python")
    parser.add_argument("--llama-server", type=Path, help="path of llama.cpp's server")
    parser.add_argument("--label", default="", help="what the model is called in the plot")
    parser.add_argument("--clients", default="1,4,8,16", help="closed loop: clients at once")
    parser.add_argument("--requests", type=int, default=2, help="closed loop: requests of each client")
    parser.add_argument("--rates", default="0.2", help="open loop: requests a second")
    parser.add_argument("--seconds", type=float, default=60, help="open loop: how long they arrive")
    parser.add_argument(
        "--words", type=int, default=64, help="of a prompt, in the mean; about as many tokens"
    )
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, in the mean")
    parser.add_argument(
        "--history", type=int, default=2000, help="words of the chat's history; 0 leaves it out"
    )
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    model = options.model or packages.fetch("qwen2.5-coder-1.5b")
    print(json.dumps(machine.describe()))
    results = [asyncio.run(measure(server, model, options)) for server in servers(model, options)]
    if options.save:
        machine.save(options.save, "serve_load", results)


if __name__ == "__main__":
    main()
