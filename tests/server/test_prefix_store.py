"""The prefix cache on disk: the same answers after a restart, and no file that could lead astray."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.sampling import SamplingParams
from bitqwen.server.prefix_store import PrefixStore
from bitqwen.server.requests import GenerationRequest, Usage
from bitqwen.server.scheduler import Scheduler
from bitqwen.server.settings import ServerSettings

PROMPT = [3 + i % 200 for i in range(200)]
PROMPTS = [PROMPT, [*PROMPT[:150], *range(40, 90)], [*PROMPT[:128], 7, 8, 9], list(range(50, 130))]


def ask(scheduler: Scheduler, prompt: list[int]) -> tuple[list[int], Usage]:
    async def run() -> tuple[list[int], Usage]:
        wanted = GenerationRequest(prompt, SamplingParams(temperature=0), max_tokens=6)
        async with scheduler.submit(wanted) as handle:
            return [delta.token async for delta in handle if delta.token is not None], handle.usage

    return asyncio.run(run())


@pytest.fixture
def start(load_tiny: Callable[..., LanguageModel], tiny_gguf: Path, tmp_path: Path) -> Callable[..., Any]:
    def start_(**load: Any) -> Scheduler:
        store = PrefixStore(tmp_path / "cache", tiny_gguf, load.get("kv", "f16"))
        return Scheduler(load_tiny(**load), ServerSettings(model="tiny"), store)

    return start_


@pytest.fixture
def saved(start: Callable[..., Scheduler], tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """A file, and the answers that went before it."""
    scheduler = start()
    answers = [ask(scheduler, prompt)[0] for prompt in PROMPTS]
    scheduler.close()
    (path,) = (tmp_path / "cache").iterdir()
    return path, answers


@pytest.mark.parametrize("kv", ["f16", "int8"])
def test_a_restart_changes_nothing_but_the_time(start: Callable[..., Scheduler], kv: str) -> None:
    scheduler = start(kv=kv)
    before = [ask(scheduler, prompt)[0] for prompt in PROMPTS]
    held = scheduler.cached_positions
    scheduler.close()
    scheduler = start(kv=kv)
    assert scheduler.cached_positions == held
    after = [ask(scheduler, prompt) for prompt in PROMPTS]
    scheduler.close()
    assert [tokens for tokens, _ in after] == before
    assert [usage.cached_tokens for _, usage in after] == [len(prompt) - 1 for prompt in PROMPTS]


def test_only_its_owner_may_read_the_file_and_shared_pages_are_in_it_once(
    saved: tuple[Path, list[list[int]]], language_model: LanguageModel
) -> None:
    path, _ = saved
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    pages = path.stat().st_size // language_model.model.page_bytes
    # 200 + 6 tokens; beyond 128 and 128 shared ones 78 and 9; 80 + 6
    assert pages == 4 + 2 + 1 + 2


def test_a_smaller_cache_takes_what_was_used_last(
    saved: tuple[Path, list[list[int]]], start: Callable[..., Scheduler]
) -> None:
    scheduler = start(context=256, cache_positions=256)
    assert 0 < scheduler.cached_positions <= 256
    tokens, usage = ask(scheduler, PROMPTS[-1])
    scheduler.close()
    assert (tokens, usage.cached_tokens) == (saved[1][-1], len(PROMPTS[-1]) - 1)


def sealed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def with_facts(content: bytes, **facts: Any) -> bytes:
    line, _, rest = content[:-32].partition(b"\n")
    return sealed(json.dumps(json.loads(line) | facts).encode() + b"\n" + rest)


def with_head(content: bytes, *numbers: int) -> bytes:
    """The first entry, of 80 + 5 tokens, says other numbers of itself."""
    line, _, rest = content[:-32].partition(b"\n")
    return sealed(line + b"\n" + struct.pack("<iiii", *numbers) + rest[16:])


def with_token(content: bytes, token: int) -> bytes:
    line, _, rest = content[:-32].partition(b"\n")
    return sealed(line + b"\n" + rest[:16] + struct.pack("<i", token) + rest[20:])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[: len(content) // 2], "cut off"),
        (lambda content: content[:-1], "it is"),
        (lambda content: content + b"x", "it is"),
        (lambda content: content[:-1000] + bytes([content[-1000] ^ 1]) + content[-999:], "damaged"),
        (lambda content: b"", "no prefix cache"),
        (lambda content: b"GGUF" * 100, "no prefix cache"),
        (lambda content: b"[" * 100_000, "no prefix cache"),
        (lambda content: with_facts(content, model="0" * 64), "made with model"),
        (lambda content: with_facts(content, version="0.0.1"), "made with version"),
        (lambda content: with_facts(content, instructions="abacus"), "made with instructions"),
        (lambda content: with_facts(content, page_bytes=1), "made with page_bytes"),
        (lambda content: with_facts(content, entries=-1), "number of entries"),
        (lambda content: with_facts(content, entries="many"), "number of entries"),
        (lambda content: with_facts(content, entries=60_000), "it is|impossible"),
        (lambda content: with_head(content, 1 << 30, -1, 0, 1 << 24), "impossible size"),
        (lambda content: with_head(content, -1, -1, 0, 0), "impossible size"),
        (lambda content: with_head(content, 85, -1, 2, 0), "begins like none"),
        (lambda content: with_head(content, 85, 5, 1, 1), "begins like none"),
        (lambda content: with_token(content, -1), "token"),
        (lambda content: with_token(content, 1 << 30), "token"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_one_sentence(
    saved: tuple[Path, list[list[int]]],
    start: Callable[..., Scheduler],
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[bytes], bytes],
    reason: str,
) -> None:
    path, answers = saved
    path.write_bytes(spoil(path.read_bytes()))
    scheduler = start()
    free = scheduler.loop._model.free_positions
    assert free == scheduler.loop._model.cache_positions
    assert scheduler.cached_positions == 0
    assert ask(scheduler, PROMPTS[0])[0] == answers[0]
    scheduler.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(reason, line), line


def test_a_folder_that_cannot_be_written_is_a_line_in_the_log(
    start: Callable[..., Scheduler], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    scheduler = start()
    assert ask(scheduler, PROMPT)[0]
    scheduler.close()
    assert "could not be saved" in caplog.text
