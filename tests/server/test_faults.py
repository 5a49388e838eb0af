"""Clients that vanish, dawdle and crowd; and two that must never see each other's text."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

COMPLETE = "/v1/completions"


def body(prompt="the fox", **fields):
    return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 20} | fields


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def address(client) -> tuple[str, int]:
    host, port = client.live.url.removeprefix("http://").split(":")
    return host, int(port)


def raw_request(client, fields, path=COMPLETE) -> bytes:
    data = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def test_a_client_that_goes_away_in_mid_stream_frees_its_memory(start_app):
    client = start_app(prefix_cache=False, stream_buffer=2)
    scheduler, model = client.live.served.scheduler, client.live.served.language_model.model
    free = model.free_positions
    for stream in (True, False):
        with socket.create_connection(address(client)) as connection:
            fields = body(max_tokens=None, stream=stream, n=2)
            if not stream:
                fields |= {"prompt": "the fox " * 40, "ignore_eos": True}
            connection.sendall(raw_request(client, fields))
            until(lambda: scheduler.running)
        until(lambda: not scheduler.running and model.free_positions == free)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the fox"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 400}),
        ("/v1/responses", {"input": "the fox"}),
    ],
)
def test_a_stream_of_any_interface_ends_with_its_client(start_app, path, fields):
    client = start_app(prefix_cache=False, stream_buffer=2)
    scheduler, model = client.live.served.scheduler, client.live.served.language_model.model
    free = model.free_positions
    with socket.create_connection(address(client)) as connection:
        fields = fields | {"model": client.live.served.name, "stream": True}
        connection.sendall(raw_request(client, fields, path))
        until(lambda: scheduler.running)
    until(lambda: not scheduler.running and model.free_positions == free)


def test_two_hundred_half_open_connections_keep_nobody_out(start_app):
    client = start_app()
    idle = [socket.create_connection(address(client)) for _ in range(200)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Le")
        assert client.post(COMPLETE, body()).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_slow_reader_holds_up_only_itself(start_app):
    client = start_app(stream_buffer=2)
    scheduler = client.live.served.scheduler
    with socket.create_connection(address(client)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        # Long events fill the connection's buffers soon: then the engine waits for this reader alone.
        slow.sendall(raw_request(client, body(max_tokens=100, stream=True, logprobs=100)))
        until(lambda: scheduler.running)
        assert client.post(COMPLETE, body()).json()["usage"]["completion_tokens"] == 20
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        received = b""
        while b"[DONE]" not in received:
            received += slow.recv(65536)
        assert received.count(b"token_logprobs") >= 100


def test_a_full_server_says_when_to_come_back(start_app):
    client = start_app(max_batch=1, max_queue=0, max_choices=1)
    answers = []

    def ask():
        answers.append(client.post(COMPLETE, body(max_tokens=300)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = sorted(answer.status_code for answer in answers)
    assert set(codes) <= {200, 503}
    assert 200 in codes
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"
    assert client.post(COMPLETE, body()).status_code == 200


def test_a_kv_cache_much_too_small_for_all_serves_them_one_after_the_other(start_app, language_model):
    client = start_app(load={"context": 256, "cache_positions": 256})
    prompts = [f"{number} the quick brown fox jumps over the lazy dog" for number in range(8)]

    async def all_at_once():
        async with httpx.AsyncClient(base_url=client.live.url, timeout=60) as many:
            return await asyncio.gather(
                *(many.post(COMPLETE, json=body(prompt, max_tokens=100)) for prompt in prompts)
            )

    for prompt, answer in zip(prompts, asyncio.run(all_at_once()), strict=True):
        assert answer.status_code == 200, answer.text
        expected = language_model.generate(prompt, max_tokens=100, temperature=0).text
        assert answer.json()["choices"][0]["text"] == expected


def test_a_kernel_that_fails_costs_its_requests_only_until_it_fails_always(start_app, monkeypatch, caplog):
    client = start_app()
    batch = client.live.served.scheduler.loop._batch
    real, failing = batch.step, 1

    def step(work, wanted, screens):
        nonlocal failing
        if failing:
            failing -= 1
            raise RuntimeError("thread 1 of the pool failed at 0x7f00")
        return real(work, wanted=wanted, screens=screens)

    monkeypatch.setattr(batch, "step", step)
    free = client.live.served.language_model.model.free_positions
    failed = client.post(COMPLETE, body())
    assert failed.status_code == 500
    assert "0x7f00" not in failed.text
    assert "0x7f00" in caplog.text
    assert client.live.served.language_model.model.free_positions == free
    assert client.post(COMPLETE, body()).status_code == 200
    assert client.get("/health").json()["status"] == "ok"
    failing = 1000
    streamed = client.post(COMPLETE, body(stream=True))
    assert "server_error" in streamed.text
    assert [client.post(COMPLETE, body()).status_code for _ in range(3)] == [500, 500, 503]
    assert client.get("/health").json()["status"] == "broken"
    assert client.get("/ready").status_code == 503


def test_health_while_the_queue_is_full(start_app):
    client = start_app(max_batch=1, max_queue=1, max_choices=1, stream_buffer=1)
    scheduler = client.live.served.scheduler
    asked = raw_request(client, body(max_tokens=None, ignore_eos=True, stream=True, logprobs=100))
    with socket.create_connection(address(client)) as one, socket.create_connection(address(client)) as two:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.sendall(asked)  # and not read: it stays in the batch
        until(lambda: scheduler.running == 1)
        two.sendall(asked)
        until(lambda: scheduler.full)
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "overloaded")
        assert client.get("/ready").status_code == 503
        assert client.post(COMPLETE, body()).status_code == 503
    until(lambda: client.get("/ready").status_code == 200)


def test_a_deadline_ends_a_stream_with_an_event_and_an_answer_with_504(start_app):
    client = start_app(request_seconds=0.001)
    answer = client.post(COMPLETE, body(max_tokens=None))
    assert answer.status_code == 504
    streamed = client.post(COMPLETE, body(max_tokens=None, stream=True)).text
    assert "deadline_exceeded" in streamed.rstrip().rpartition("data: ")[2]


@settings(max_examples=6, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), min_size=2, max_size=10))
def test_no_client_ever_sees_what_another_one_would(canaries, language_model, asked):
    """Each client's prompts begin in its own way; each answer must be that of its prompt alone."""
    url, expected = canaries

    async def one(client: httpx.AsyncClient, number: int, words: int, stream: bool) -> None:
        prompt = f"client {number} " * words
        fields = body(prompt, stream=stream, max_tokens=16)
        answer = await client.post(COMPLETE, json=fields)
        text = answer.text
        if stream:
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            made = "".join(choice["text"] for event in events for choice in event["choices"])
        else:
            made = answer.json()["choices"][0]["text"]
        key = (number, words)
        if key not in expected:
            expected[key] = language_model.generate(prompt, max_tokens=16, temperature=0).text
        assert made == expected[key]

    async def all_at_once() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            await asyncio.gather(*(one(client, *each) for each in asked))

    asyncio.run(all_at_once())
