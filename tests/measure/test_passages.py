from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from fake_model import TableModel, log_softmax

from bitqwen.errors import CheckpointError, UsageError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure import perplexity
from bitqwen.measure.passages import Passage, logit_rows, passage

TEXT = "the quick brown fox jumps over the lazy dog; the dog did not mind. " * 20


def test_chunks_are_the_text_s_tokens_in_order(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    found = passage("prose", TEXT, tokenizer, context=32)
    assert found.chunks.shape == (len(ids) // 32, 32)
    assert found.chunks.ravel().tolist() == ids[: found.chunks.size]
    assert found.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (
        passage("prose", TEXT, tokenizer, context=32, chunks=2).chunks.tolist() == found.chunks[:2].tolist()
    )
    assert len(passage("prose", TEXT, tokenizer, context=32, chunks=10_000).chunks) == len(found.chunks)


def test_control_tokens_names_are_text(tokenizer: Tokenizer) -> None:
    found = passage("prose", "<|im_end|>" * 40, tokenizer, context=16)
    assert tokenizer.control["<|im_end|>"] not in found.chunks


def test_bos_starts_each_chunk_where_a_model_wants_it(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "add_bos", True)
    monkeypatch.setattr(tokenizer, "bos_id", 7)
    found = passage("prose", TEXT, tokenizer, context=32)
    assert (found.chunks[:, 0] == 7).all()
    # As llama-perplexity does it: bos before the whole text, then over each chunk's first token.
    ids = [7, *tokenizer.encode(TEXT)]
    np.testing.assert_array_equal(
        found.chunks[:, 1:], np.reshape(ids[: found.chunks.size], found.chunks.shape)[:, 1:]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 7}, "The context is 7 tokens; allowed: 8 to"),
        ({"context": 1 << 30}, "allowed: 8 to"),
        ({"chunks": 0}, "number of chunks is 0"),
        ({"context": 4096}, "a chunk has 4096"),
    ],
)
def test_what_cannot_be_cut(tokenizer: Tokenizer, options: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        passage("prose", TEXT, tokenizer, **options)


def chunks(count: int, context: int, vocab: int, seed: int = 0) -> Passage:
    ids = np.random.default_rng(seed).integers(0, vocab, (count, context))
    return Passage("random", "0" * 64, ids, vocab)


@pytest.mark.parametrize("context", [8, 9, 50, 255])
@pytest.mark.parametrize("slice_rows", [1, 7, 64])
def test_rows_are_those_of_the_second_half(context: int, slice_rows: int) -> None:
    model = TableModel()
    text = chunks(1, context, 97)
    rows = [row.copy() for row in logit_rows(model, text, 0, slice_rows=slice_rows)]
    whole = model.logits(text.chunks[0].tolist())
    np.testing.assert_array_equal(np.stack(rows), whole[context // 2 : -1])
    assert len(rows) == text.rows == len(text.targets(0))
    assert model.most_rows <= slice_rows
    assert model.open_sessions == 0


def test_a_session_is_closed_when_the_reader_leaves() -> None:
    model = TableModel()
    rows = logit_rows(model, chunks(1, 64, 97), 0)
    next(rows)
    assert model.open_sessions == 1
    rows.close()  # type: ignore[attr-defined]
    assert model.open_sessions == 0


def test_perplexity_is_llama_perplexity_s() -> None:
    """The definition, written out as llama.cpp's loop has it."""
    model = TableModel(scale=1.5)
    text = chunks(5, 33, 97)
    nll = nll2 = 0.0
    count = 0
    for chunk in text.chunks:
        logprobs = log_softmax(model.logits(chunk.tolist()))
        for j in range(33 // 2, 33 - 1):
            value = -float(logprobs[j, chunk[j + 1]])
            nll, nll2, count = nll + value, nll2 + value * value, count + 1
    nll, nll2 = nll / count, nll2 / count
    error = math.sqrt((nll2 - nll * nll) / (count - 1))
    found = perplexity.summarize(np.stack([perplexity.chunk_nll(model, text, i) for i in range(5)]))
    assert found.tokens == count
    assert found.value == pytest.approx(math.exp(nll), rel=1e-6)
    assert found.standard_error == pytest.approx(math.exp(nll) * error, rel=1e-5)
    assert found.low < found.value < found.high


def test_padding_rows_of_the_output_have_no_part() -> None:
    model = TableModel()
    text = chunks(1, 40, 80)
    expected = -log_softmax(model.logits(text.chunks[0].tolist())[20:-1, :80])
    found = perplexity.chunk_nll(model, text, 0)
    np.testing.assert_allclose(found, expected[np.arange(19), text.targets(0)].astype(float), rtol=1e-5)


def test_a_model_with_a_smaller_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="read with 97 tokens; the model has 50"):
        perplexity.chunk_nll(TableModel(50), chunks(1, 40, 97), 0)


def test_hopeless_models_have_a_perplexity_too() -> None:
    found = perplexity.summarize(np.full((2, 3), 800.0))
    assert found.value == math.inf
    assert found.mean_nll == 800


def test_a_broken_model_is_named_as_one() -> None:
    model = TableModel()
    model.table[:, 3] = np.nan
    with pytest.raises(CheckpointError, match="not finite"):
        perplexity.chunk_nll(model, chunks(1, 40, 97), 0)
    assert model.open_sessions == 0
