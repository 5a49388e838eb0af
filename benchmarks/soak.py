"""Does a server that is left running stay as it was? Mixed requests for a number or a time, and its memory.

Starts ``bitqwen serve`` and sends it, from several clients at once: chats whole and streamed, completions,
Anthropic's messages, Responses, embeddings, answers bound to a schema, streams that are left in the middle,
and requests that must be refused. Every answer is checked. After a warm-up, in which caches fill, the
server's resident memory may grow by ``--growth`` percent; more, or any wrong answer, ends it with code 1.

    pip install 'bitqwen[test]'
    python benchmarks/soak.py MODEL.gguf --requests 10000
    python benchmarks/soak.py MODEL.gguf --minutes 60 --clients 8
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import machine
import psutil

WORDS = ["river", "stone", "paper", "window", "garden", "engine", "letter", "number", "circle", "market"]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": [1, 2]}},
    "required": ["n"],
    "additionalProperties": False,
}
SYSTEM = "You are a careful assistant that answers in few words and never makes anything up. " * 4


class Wrong(Exception):  # noqa: N818
    """An answer that is not what was asked for."""


def check(condition: object, what: str) -> None:
    if not condition:
        raise Wrong(what)


class Asker:
    """One kind of request after the other, at random."""

    def __init__(self, client: httpx.AsyncClient, model: str, tokens: int) -> None:
        self._client = client
        self._model = model
        self._tokens = tokens
        self.kinds: list[Callable[[random.Random], Awaitable[None]]] = [
            self.chat,
            self.chat_streamed,
            self.completion,
            self.left_early,
            self.messages,
            self.responses,
            self.embedding,
            self.bound,
            self.refused,
        ]

    def _words(self, rng: random.Random) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 40)))

    def _chat(self, rng: random.Random) -> list[dict[str, str]]:
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": self._words(rng)}]

    async def _post(self, path: str, expected: int = 200, **body: Any) -> Any:
        answer = await self._client.post(path, json={"model": self._model, **body})
        check(answer.status_code == expected, f"{path}: {answer.status_code} {answer.text[:200]}")
        return answer.json()

    async def chat(self, rng: random.Random) -> None:
        made = await self._post("/v1/chat/completions", messages=self._chat(rng), max_tokens=self._tokens)
        check(0 <= made["usage"]["completion_tokens"] <= self._tokens, "usage of a chat")

    async def chat_streamed(self, rng: random.Random) -> None:
        body = {"model": self._model, "messages": self._chat(rng), "max_tokens": self._tokens, "stream": True}
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            check(response.status_code == 200, f"a stream: {response.status_code}")
            lines = [line async for line in response.aiter_lines() if line]
        check(lines[-1] == "data: [DONE]", "the end of a stream")

    async def completion(self, rng: random.Random) -> None:
        made = await self._post(
            "/v1/completions", prompt=self._words(rng), max_tokens=self._tokens, n=2, temperature=1.0
        )
        check(len(made["choices"]) == 2, "two choices")

    async def left_early(self, rng: random.Random) -> None:
        body = {"model": self._model, "prompt": self._words(rng), "ignore_eos": True, "stream": True}
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            check(response.status_code == 200, f"a stream to leave: {response.status_code}")
            async for line in response.aiter_lines():
                if line:
                    break

    async def messages(self, rng: random.Random) -> None:
        made = await self._post(
            "/v1/messages", messages=self._chat(rng)[1:], system=SYSTEM, max_tokens=self._tokens
        )
        check(made["type"] == "message", "a message")

    async def responses(self, rng: random.Random) -> None:
        made = await self._post("/v1/responses", input=self._words(rng), max_output_tokens=self._tokens)
        check(made["status"] in {"completed", "incomplete"}, "a response's status")

    async def embedding(self, rng: random.Random) -> None:
        made = await self._post("/v1/embeddings", input=self._words(rng))
        check(abs(sum(x * x for x in made["data"][0]["embedding"]) - 1) < 1e-3, "a vector's length")

    async def bound(self, rng: random.Random) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
        made = await self._post(
            "/v1/chat/completions",
            messages=self._chat(rng),
            max_tokens=60,
            response_format=form,
            temperature=0,
        )
        choice = made["choices"][0]
        if choice["finish_reason"] == "stop":
            check(json.loads(choice["message"]["content"])["n"] in {1, 2}, "an answer bound to a schema")

    async def refused(self, rng: random.Random) -> None:
        body, status = rng.choice(
            [({"best_of": 3}, 400), ({"temperature": "hot"}, 400), ({"model": "x"}, 404)]
        )
        await self._post("/v1/completions", status, **{"prompt": self._words(rng), **body})


@asynccontextmanager
async def server(options: argparse.Namespace) -> AsyncIterator[tuple[psutil.Process, httpx.AsyncClient]]:
    """The server's process and a client of it."""
    command = [sys.executable, "-m", "bitqwen", "serve", str(options.model), "--port", "0", "--alias", "soak"]
    command += ["--threads", str(options.threads), "--context", str(options.context)]
    command += ["--cache-positions", str(options.cache_positions), "--max-queue", "1000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        url = ""
        while not url:
            line = process.stderr.readline()
            if not line:
                raise SystemExit("the server did not start")
            if match := re.search(r'"url": "([^"]+)"', line):
                url = match[1]
        threading.Thread(target=_drop, args=(process.stderr,), daemon=True).start()
        async with httpx.AsyncClient(base_url=url, timeout=600) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.1)
            yield psutil.Process(process.pid), client
    finally:
        process.terminate()
        code = process.wait(timeout=120)
        print(f"the server ended with code {code}", flush=True)


def _drop(log: Any) -> None:
    for line in log:
        if '"level": "error"' in line:
            print(line, end="", flush=True)


class Soak:
    """What was asked and answered so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self.minutes = 0.0  # that it ran: a laptop's sleep, or a stopped process, is no time
        self.done: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.warm = 0
        self.rows: list[tuple[float, int, int]] = []  # minutes, requests, bytes

    def over(self) -> bool:
        if self._options.minutes:
            return self.minutes >= self._options.minutes
        return self.done.total() >= self._options.requests

    async def ask(self, asker: Asker, number: int) -> None:
        rng = random.Random(number)
        while not self.over():
            kind = rng.choice(asker.kinds)
            try:
                await kind(rng)
            except (Wrong, httpx.HTTPError, ValueError, KeyError) as error:
                what = f"{kind.__name__}: {error!r:.300}"
                self.wrong[what] += 1
                print(f"{self.minutes:7.1f} min {what}", flush=True)
            self.done[kind.__name__] += 1
            if self._options.pause:
                await asyncio.sleep(rng.expovariate(1 / self._options.pause))

    async def watch(self, process: psutil.Process) -> None:
        step = max(50, self._options.requests // 20)
        upcoming = self._options.warm_up
        looked = time.monotonic()
        while True:
            now = time.monotonic()
            self.minutes += min(now - looked, 5.0) / 60
            looked = now
            if self.done.total() >= upcoming:
                self.note(process)
                upcoming = self.done.total() + step
            await asyncio.sleep(0.05)

    def note(self, process: psutil.Process) -> None:
        row = (self.minutes, self.done.total(), process.memory_info().rss)
        self.rows.append(row)
        wrong = self.wrong.total()
        print(
            f"{row[0]:7.1f} min {row[1]:7} requests {wrong:4} wrong   {row[2] / 1e6:8.1f} MB resident",
            flush=True,
        )


async def run(options: argparse.Namespace) -> Soak:
    async with server(options) as (process, client):
        soak = Soak(options)
        asker = Asker(client, "soak", options.tokens)
        watching = asyncio.create_task(soak.watch(process))
        await asyncio.gather(*(soak.ask(asker, number) for number in range(options.clients)))
        watching.cancel()
        soak.note(process)
        health = (await client.get("/health")).json()
        at_work = [model for model in health["models"].values() if model["running"] or model["queued"]]
        if health["status"] != "ok" or at_work:
            soak.wrong[f"health at the end: {health}"] += 1
    return soak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, help="instead of a number of requests")
    parser.add_argument("--warm-up", type=int, default=1000, help="requests before memory is looked at")
    parser.add_argument("--growth", type=float, default=2.0, help="percent that memory may grow after that")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument(
        "--pause", type=float, default=0, help="seconds between a client's requests, in the mean"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--cache-positions", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    print(json.dumps(machine.describe()))
    soak = asyncio.run(run(options))
    if len(soak.rows) < 2:
        raise SystemExit("it ended before the warm-up did")
    first, last = soak.rows[0][2], max(size for _, _, size in soak.rows[1:])
    growth = 100 * (last / first - 1)
    print(f"{soak.done.total()} requests in {soak.minutes:.1f} min, {dict(soak.done)}")
    print(f"{soak.wrong.total()} wrong; memory grew by {growth:.2f} % after the warm-up")
    for what, count in soak.wrong.most_common(10):
        print(f"  {count} x {what}")
    if options.save:
        machine.save(options.save, "soak", {"rows": soak.rows, "wrong": dict(soak.wrong), "growth": growth})
    sys.exit(bool(soak.wrong) or growth > options.growth)


if __name__ == "__main__":
    main()
