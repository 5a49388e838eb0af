from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.generation.tokenizer import Tokenizer
from helpers.tiny_checkpoint import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_tokenizer_json(folder / "tokenizer.json")


@pytest.fixture(scope="session")
def tiny_gguf(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    convert(tiny_checkpoint().folder, path, "f16")
    return path


@pytest.fixture(scope="session")
def engine(tiny_gguf: Path) -> Iterator[Model]:
    """The engine itself, on a tiny model of the same tokenizer."""
    yield Model.open(tiny_gguf, threads=2, context=256, cache_positions=4 * 256)
