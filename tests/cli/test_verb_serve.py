"""The serve verb as a process: settings, where it listens, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

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


def get(url: str, **headers: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
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
