"""Files of mainline types give the same greedy tokens here and in llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model

llama_cpp = pytest.importorskip("llama_cpp")

TOKENS = 16
# Where the two best logits are closer than this, the two engines' own rounding of activations may
# choose either: llama.cpp's has a scale for 256 values, ours for 32 to 128.
CLOSE = 0.75


def greedy(path: Path, prompt: list[int]) -> tuple[list[int], np.ndarray]:
    """Our greedy continuation, and how far its token is ahead of the next at each step."""
    model = Model.open(path, context=256)
    tokens, leads = [], []
    with model.session() as session:
        logits = session.feed(prompt)
        for _ in range(TOKENS):
            assert logits is not None
            second, best = np.sort(logits)[-2:]
            tokens.append(int(logits.argmax()))
            leads.append(float(best - second))
            logits = session.feed(tokens[-1:])
    return tokens, np.array(leads)


def llama_choices(path: Path, prompt: list[int], continuation: list[int]) -> list[int]:
    """What llama.cpp would write at each step of the same continuation."""
    llama = llama_cpp.Llama(str(path), n_ctx=256, n_threads=2, verbose=False, logits_all=True)
    llama.eval(prompt + continuation[:-1])
    choices = np.asarray(llama.scores[len(prompt) - 1 : llama.n_tokens]).argmax(axis=1).tolist()
    llama.close()
    return choices


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["w4", "w2"])
def test_llama_cpp_chooses_the_same_tokens(real_model, tmp_path, scheme):
    path = convert(real_model, tmp_path / f"{scheme}.gguf", scheme).path
    llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    prompt = llama.tokenize(b"def fibonacci(n):\n    if n < 2:\n        return n\n    return", add_bos=False)
    ours, leads = greedy(path, prompt)
    theirs = llama_choices(path, prompt, ours)
    clear = leads >= CLOSE
    assert clear.sum() >= TOKENS // 4
    assert np.array_equal(np.array(ours)[clear], np.array(theirs)[clear])
