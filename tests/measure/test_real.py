"""The real model, against llama.cpp's logits on the same chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from bitqwen import texts
from bitqwen.engine import Model
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile
from bitqwen.measure import Passage, evaluate, passage

CHUNKS = 2


class LlamaCpp:
    """llama.cpp as a :class:`bitqwen.measure.passages.ScoringModel`, one session at a time."""

    def __init__(self, llama: Any) -> None:
        self.llama = llama
        self.vocab_size = llama.n_vocab()

    def session(self) -> LlamaCpp:
        self.llama.reset()
        return self

    def feed(
        self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last"
    ) -> npt.NDArray[np.float32] | None:
        start = self.llama.n_tokens
        self.llama.eval(list(ids))
        rows = self.llama.scores[start : self.llama.n_tokens].copy()
        return {"all": rows, "last": rows[-1], "none": None}[logits]

    def close(self) -> None:
        self.llama.reset()


@pytest.fixture(scope="module")
def passages(real_model: Path) -> list[Passage]:
    tokenizer = Tokenizer.from_gguf(GGUFFile(real_model).metadata)
    return [
        passage(name, texts.packaged_text(name), tokenizer, chunks=CHUNKS) for name in texts.packaged_names()
    ]


@pytest.fixture(scope="module")
def llama_cpp_model(real_model: Path) -> Iterator[LlamaCpp]:
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(real_model), n_ctx=512, n_batch=512, logits_all=True, verbose=False)
    yield LlamaCpp(llama)
    llama.close()


@pytest.mark.real
def test_predictions_are_llama_cpp_s_but_for_the_rounding_of_activations(
    real_model: Path, passages: list[Passage], llama_cpp_model: LlamaCpp
) -> None:
    model = Model.open(real_model, context=512)
    for result in evaluate(model, passages, llama_cpp_model):
        difference = result.divergence
        assert difference is not None
        assert difference.tokens == CHUNKS * 255
        assert difference.kl.value < 8e-3
        assert difference.same_top.value > 0.93
        # Both engines round activations to eight bits, each in its own way and llama.cpp in another on each
        # instruction set: single tokens differ, by a few per cent, their mean by no more than chance has it.
        ratio = difference.log_ratio
        assert ratio.standard_error < 8e-3
        assert abs(ratio.value) < 4 * ratio.standard_error


@pytest.mark.real
def test_perplexity_of_llama_cpp_s_logits_is_what_the_formula_says(
    passages: list[Passage], llama_cpp_model: LlamaCpp
) -> None:
    llama = llama_cpp_model.llama
    one = dataclasses.replace(passages[0], chunks=passages[0].chunks[:1])
    (result,) = evaluate(llama_cpp_model, [one])
    (chunk,) = one.chunks.tolist()
    llama.reset()
    llama.eval(chunk)
    nll = []
    for i in range(256, 511):
        row = llama.scores[i].astype(np.float64)
        nll.append(np.logaddexp.reduce(row) - row[chunk[i + 1]])
    assert result.perplexity.tokens == 255
    # Rows come in slices there and all at once here, which llama.cpp does not round alike.
    assert result.perplexity.value == pytest.approx(math.exp(np.mean(nll)), rel=3e-3)
