"""The command line as a user runs it: a process of its own, with a cache of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitqwen.convert import convert

Bitqwen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's caches, or asks the hub."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("BITQWEN_CACHE", str(folder))
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tiny_checkpoint) -> Path:
    """A checkpoint folder whose greedy answers go on for ever: no control token is ever the likeliest."""
    from helpers.tiny_checkpoint import write_safetensors
    from helpers.tiny_tokenizer import CONTROL, tiny_tokenizer

    made = tiny_checkpoint(context=4096)
    for name in CONTROL:
        # The head is the embedding: a row of zeros scores zero, and some other row always scores more.
        made.weights["model.embed_tokens.weight"][tiny_tokenizer().token_to_id(name)] = 0
    write_safetensors(made.folder / "model.safetensors", made.weights, "BF16")
    return made.folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a GGUF file in half precision."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(tiny_folder, path, "f16")
    return path


@pytest.fixture(scope="session")
def bitqwen() -> Bitqwen:
    """Runs the command; input and output are text, or bytes where the input is."""

    def run(*arguments: object, stdin: str | bytes = b"") -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, "-m", "bitqwen", *map(str, arguments)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            env=os.environ | {"COLUMNS": "120"},
            timeout=300,
        )
        out, err = result.stdout.decode(), result.stderr.decode()
        assert "Traceback" not in err or "--debug" in arguments, err
        return subprocess.CompletedProcess(result.args, result.returncode, out, err)

    return run
