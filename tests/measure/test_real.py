"""The real model, against llama.cpp's logits on the same chunks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bitqwen import texts
from bitqwen.engine import Model
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile
from bitqwen.measure import evaluate, passage

CHUNKS = 2


@pytest.mark.real
def test_perplexity_is_llama_cpp_s(real_model: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    tokenizer = Tokenizer.from_gguf(GGUFFile(real_model).metadata)
    passages = [
        passage(name, texts.packaged_text(name), tokenizer, chunks=CHUNKS) for name in texts.packaged_names()
    ]

    expected = []
    other = llama_cpp.Llama(str(real_model), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    for each in passages:
        nll = []
        for chunk in each.chunks.tolist():
            other.reset()
            other.eval(chunk)
            for i in range(256, 511):
                row = other.scores[i].astype(np.float64)
                nll.append(np.logaddexp.reduce(row) - row[chunk[i + 1]])
        expected.append(math.exp(np.mean(nll)))
    other.close()

    model = Model.open(real_model, context=512)
    for result, value in zip(evaluate(model, passages), expected, strict=True):
        assert result.perplexity.tokens == CHUNKS * 255
        assert result.perplexity.value == pytest.approx(value, rel=3e-3)
