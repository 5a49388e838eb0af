"""The serve verb as a process: settings, where it listens, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("pydantic_settings") is None, reason="needs bitqwen[serve]")


@contextmanager
def serving(
    *arguments: object, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], list[dict], str]]:
    """A server on a free port; its process, the lines of its log so far, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bitqwen", "serve", *map(str, arguments), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )
    log: list[dict] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(json.loads(line))
            if log[-1].get("event") == "listening":
                break
        yield process, log, log[-1]["url"]
    finally:
        process.kill()
        process.communicate()


def get(url: str, context: ssl.SSLContext | None = None, **headers: str) -> tuple[int, dict]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until_loaded(url: str, **headers: str) -> None:
    while get(f"{url}/health")[1]["status"] == "loading":
        pass


def test_settings_come_from_flags_environment_and_file_in_this_order(tiny_gguf, tmp_path):
    config = tmp_path / "server.toml"
    config.write_text(f'model = "{tiny_gguf}"\nmax_batch = 3\nmax_queue = 5\nprefill_tokens = 7\n')
    environment = {
        "BITQWEN_SERVE_MAX_QUEUE": "6",
        "BITQWEN_SERVE_PREFILL_TOKENS": "8",
        "BITQWEN_SERVE_API_KEYS": "sesame, open",
    }
    with serving("--config", config, "--prefill-tokens", 9, **environment) as (process, log, url):
        settings = log[0]
        assert (settings["event"], settings["host"]) == ("settings", "127.0.0.1")
        assert [settings[name] for name in ("max_batch", "max_queue", "prefill_tokens")] == [3, 6, 9]
        assert "sesame" not in json.dumps(log)
        until_loaded(url)
        assert get(f"{url}/v1/models")[0] == 401
        status, models = get(f"{url}/v1/models", Authorization="Bearer open")
        assert status == 200
        assert models["data"][0]["id"] == tiny_gguf.stem
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) in {0, -signal.SIGTERM}


def test_every_flag_sets_what_it_is_called_after(tiny_gguf, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("sesame")
    flags = {
        "alias": "coder",
        "models_dir": tmp_path,
        "keep_alive": "90s",
        "memory_budget": "2GB",
        "threads": 1,
        "context": 200,
        "kv": "q8",
        "cache_positions": 300,
        "host": "localhost",
        "api_key_file": keys,
        "cors_origin": "https://friend.example",
        "max_batch": 3,
        "max_queue": 4,
        "prefill_tokens": 5,
        "prefix_cache_dir": tmp_path / "prefixes",
        "max_tokens": 6,
        "request_seconds": 7,
        "drain_seconds": 8,
        "log_level": "info",
    }
    arguments = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", value)]
    switches = ["--insecure", "--no-ui", "--no-prefix-cache", "--log-prompts"]
    with serving(tiny_gguf, *arguments, *switches) as (_, log, _):
        settings = log[0]
    expected = flags | {"insecure": True, "ui": False, "prefix_cache": False, "log_prompts": True}
    expected |= {"alias": ["coder"], "cors_origins": [expected.pop("cors_origin")]}
    expected |= {"keep_alive": 90, "memory_budget": 2_000_000_000}
    expected |= {name: str(value) for name, value in expected.items() if isinstance(value, Path)}
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, to make a certificate")
def test_https(tiny_gguf, tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    trusting = ssl.create_default_context(cafile=cert)
    with serving(tiny_gguf, "--tls-cert", cert, "--tls-key", key) as (_, _, url):
        assert url.startswith("https://")
        assert get(f"{url}/v1/models", trusting)[1]["data"][0]["id"] == tiny_gguf.stem
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            get(f"{url}/v1/models")


def streaming(url: str, **fields: object) -> socket.socket:
    """A connection on which a stream has begun."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    connection.settimeout(60)
    body = json.dumps(
        {"model": "tiny", "prompt": "the fox", "ignore_eos": True, "stream": True} | fields
    ).encode()
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
    connection.sendall(body)
    assert connection.recv(15) == b"HTTP/1.1 200 OK"
    return connection


def test_a_connection_outlives_what_clients_keep_it_for(tiny_gguf):
    """A client that uses it again after five seconds must not meet a server that is just closing it."""
    with serving(tiny_gguf) as (_, _, url):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        for pause in (6, 0):
            connection.request("GET", "/health")
            assert json.load(connection.getresponse())["status"] in {"ok", "loading"}
            time.sleep(pause)


def test_sigterm_lets_answers_finish_and_takes_no_more(tiny_gguf):
    with serving(tiny_gguf, "--drain-seconds", 60) as (process, _, url):
        until_loaded(url)
        with streaming(url, max_tokens=900) as connection:
            process.send_signal(signal.SIGTERM)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        assert b'"finish_reason":"length"' in received
        assert b"data: [DONE]" in received
        assert process.wait(timeout=60) in {0, -signal.SIGTERM}
        with pytest.raises(urllib.error.URLError):
            get(f"{url}/health")


def test_sigterm_does_not_wait_for_ever(tiny_gguf):
    """A client that does not read would keep its answer unfinished until its deadline, ten minutes away."""
    with serving(tiny_gguf, "--drain-seconds", 1, BITQWEN_SERVE_STREAM_BUFFER="2") as (process, _, url):
        until_loaded(url)
        with streaming(url, max_tokens=1000, logprobs=100):
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=120) in {0, -signal.SIGTERM}


def test_a_model_that_cannot_be_loaded_ends_the_process(bitqwen, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    result = bitqwen("serve", broken, "--port", 0)
    assert result.returncode == 3
    assert "error:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--port", "70000"], "port is 70000"),
        (["--tls-cert", "cert.pem"], "TLS needs a certificate and its key"),
        (["--config", "nowhere.toml"], "no file nowhere.toml"),
    ],
)
def test_settings_that_cannot_be_are_refused(bitqwen, tiny_gguf, arguments, message):
    result = bitqwen("serve", tiny_gguf, *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_the_model_is_needed(bitqwen):
    result = bitqwen("serve")
    assert result.returncode == 2
    assert "no model to serve" in result.stderr


def test_a_file_with_a_name_that_is_no_setting_is_refused(bitqwen, tmp_path):
    config = tmp_path / "server.toml"
    config.write_text("max_bach = 3\n")
    result = bitqwen("serve", "model.gguf", "--config", config)
    assert result.returncode == 2
    assert "max_bach" in result.stderr
    config.write_text("max_batch =\n")
    assert "is no TOML" in bitqwen("serve", "model.gguf", "--config", config).stderr
