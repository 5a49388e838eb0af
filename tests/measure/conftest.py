from __future__ import annotations

import pytest

from bitqwen.generation.tokenizer import Tokenizer
from helpers.tiny_checkpoint import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.from_tokenizer_json(folder / "tokenizer.json")
