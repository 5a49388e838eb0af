"""Who gets in, what a request's line in the log says, and bodies that are no requests."""

from __future__ import annotations

import http.client
import json
import logging
import time
import tracemalloc

import pytest

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "xyzzy"}], "max_tokens": 3}
CHAT = "/v1/chat/completions"


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [{}, {"authorization": "Bearer sesam"}, {"authorization": "Basic sesame"}, {"x-api-key": ""}],
    )
    def test_a_wrong_key_is_refused_in_the_shape_of_each_api(self, start_app, headers):
        client = start_app(api_keys=["sesame", "open"])
        refused = client.post(CHAT, BODY, **headers)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert client.post("/v1/messages", {}, **headers).json()["type"] == "error"
        assert client.get("/metrics", **headers).status_code == 401
        assert client.get("/health", **headers).status_code == 200

    def test_each_key_opens_in_either_header(self, start_app):
        client = start_app(api_keys=["sesame", "open"])
        assert client.post(CHAT, BODY, authorization="Bearer sesame").status_code == 200
        assert client.post(CHAT, BODY, **{"x-api-key": "open"}).status_code == 200

    def test_the_file_of_keys(self, start_app, tmp_path):
        file = tmp_path / "keys"
        file.write_text("# ours\nsesame\n\n")
        client = start_app(api_key_file=file)
        assert client.post(CHAT, BODY, authorization="Bearer sesame").status_code == 200
        assert client.post(CHAT, BODY, authorization="Bearer # ours").status_code == 401


class TestOrigins:
    def test_other_pages_are_kept_out(self, start_app):
        client = start_app(cors_origins=["https://friend.example"])
        assert client.post(CHAT, BODY, origin="https://foe.example").status_code == 403
        answer = client.post(CHAT, BODY, origin="https://friend.example")
        assert answer.headers["access-control-allow-origin"] == "https://friend.example"
        own = client.post(CHAT, BODY, origin=client.live.url)
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers

    def test_a_preflight_is_answered(self, start_app):
        client = start_app(cors_origins=["*"], api_keys=["sesame"])
        answer = client.http.options(
            CHAT,
            headers={
                "origin": "https://any.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": "authorization, content-type",
            },
        )
        assert answer.status_code == 204
        assert "authorization" in answer.headers["access-control-allow-headers"]


class TestLog:
    def test_a_line_has_the_numbers_and_neither_key_nor_text(self, start_app, caplog):
        client = start_app(api_keys=["sesame"])
        with caplog.at_level(logging.INFO, logger="bitqwen.access"):
            answer = client.post(CHAT, BODY, authorization="Bearer sesame", **{"x-request-id": "mine-1"})
            while not any(record.name == "bitqwen.access" for record in caplog.records):
                time.sleep(0.005)  # the line is written when the answer is on its way
        assert answer.headers["x-request-id"] == "mine-1"
        (line,) = [record.msg for record in caplog.records if record.name == "bitqwen.access"]
        assert line["request_id"] == "mine-1"
        assert (line["path"], line["status"], line["model"]) == (CHAT, 200, "tiny")
        assert line["completion_tokens"] == 3
        assert "sesame" not in caplog.text
        assert "xyzzy" not in caplog.text

    def test_an_id_that_could_forge_a_line_is_replaced(self, start_app):
        assert start_app().get("/health", **{"x-request-id": "a b\t{}"}).headers["x-request-id"] != "a b\t{}"

    def test_prompts_are_written_if_asked_for(self, start_app, caplog):
        client = start_app(log_prompts=True)
        with caplog.at_level(logging.INFO, logger="bitqwen.server"):
            answer = client.post(CHAT, BODY)
        (line,) = [record.msg for record in caplog.records if "prompt" in record.msg]
        assert "xyzzy" in line["prompt"]
        assert line["answers"] == [answer.json()["choices"][0]["message"]["content"]]


class TestBodies:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "not valid JSON"),
            (b"{", "not valid JSON"),
            (b"[1]", "body is"),
            (b'{"model": "\xff"}', "not valid JSON"),
            (b'{"model": "\\ud800"}', "not valid JSON"),
            (b'{"model":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
            (b'{"messages": NaN}', "400"),
            (b'{"temperature": 1e999}', "400"),
        ],
    )
    def test_what_is_no_request_is_told(self, start_app, data, message):
        answer = start_app().http.post(CHAT, content=data)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"] or message == "400"

    def test_ten_megabytes_are_refused_before_they_are_read(self, start_app):
        client = start_app()
        answer = client.http.post(CHAT, content=b" " * 10_000_000)
        assert answer.status_code == 413
        assert str(4 << 20) in answer.json()["error"]["message"]

    def test_so_are_chunks_that_never_say_how_many(self, start_app):
        client = start_app(max_body_bytes=2048)

        def endless():
            for _ in range(100):
                yield b" " * 1024

        assert client.http.post(CHAT, content=endless()).status_code == 413

    def test_a_body_that_does_not_come_is_not_waited_for(self, start_app):
        client = start_app(body_seconds=0.05)
        connection = http.client.HTTPConnection(client.live.url.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", CHAT)
        connection.putheader("content-length", "100")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 408
        assert "did not arrive" in json.load(answer)["error"]["message"]
        connection.close()


def test_unknown_paths_and_methods(start_app):
    client = start_app()
    assert client.get("/v1/nothing").json()["error"]["message"] == "There is nothing at /v1/nothing."
    wrong = client.get(CHAT)
    assert wrong.status_code == 405
    assert "GET is not a method" in wrong.json()["error"]["message"]


def test_health_and_ready_say_how_it_is(start_app):
    client = start_app()
    assert client.get("/health").json() == {"status": "ok", "models": {"tiny": {"running": 0, "queued": 0}}}
    assert client.get("/ready").status_code == 200
    client.live.service.draining = True
    assert client.get("/ready").json()["status"] == "draining"
    client.live.service.draining = False
    client.live.served.scheduler.loop.failures = 3
    broken = client.get("/health")
    assert (broken.status_code, broken.json()["status"]) == (503, "broken")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "the fox", "max_tokens": 4}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "the fox"}], "max_tokens": 4}),
        ("/v1/responses", {"input": "the fox", "max_output_tokens": 4}),
    ],
)
def test_every_interface_notes_its_usage_in_the_log(start_app, caplog, path, fields, stream):
    with caplog.at_level(logging.INFO, "bitqwen.access"):
        client = start_app()
        assert client.post(path, fields | {"model": "tiny", "stream": stream}).status_code == 200
        while not caplog.records:
            time.sleep(0.005)
    (line,) = [record.msg for record in caplog.records if record.msg["path"] == path]
    assert (line["model"], line["completion_tokens"]) == ("tiny", 4)
    assert line["prompt_tokens"] >= 2


def test_what_was_asked_does_not_stay_in_memory():
    from bitqwen.server.openai_schemas import CompletionRequest
    from bitqwen.server.schemas import parse

    def ask(number: int) -> None:
        parse(CompletionRequest, json.dumps({"model": "tiny", "prompt": f"question {number}"}).encode())

    ask(0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 3000):
            ask(number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000  # less than ten bytes each
