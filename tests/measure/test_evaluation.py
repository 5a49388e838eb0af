from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from fake_model import TableModel, log_softmax

from bitqwen.errors import UsageError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.measure import evaluation
from bitqwen.measure.evaluation import Progress, evaluate, save_reference, saved_passages
from bitqwen.measure.passages import Passage, passage
from bitqwen.measure.reference import ReferenceFile

VOCAB = 97
REFERENCE = TableModel(scale=2)
MODEL = TableModel(scale=2, noise=0.7)


def texts() -> list[Passage]:
    random = np.random.default_rng(5)
    return [
        Passage(name, digit * 64, random.integers(0, VOCAB, (count, 40)), VOCAB)
        for name, digit, count in (("prose", "a", 6), ("code", "b", 4))
    ]


def test_divergence_by_its_definition() -> None:
    """Every figure again, from whole logits and in plain numpy."""
    for result, text in zip(evaluate(MODEL, texts(), REFERENCE), texts(), strict=True):
        kl, same, nll, reference_nll = [], [], [], []
        for chunk in text.chunks:
            p, q = (log_softmax(each.logits(chunk.tolist()))[20:-1] for each in (REFERENCE, MODEL))
            kl.append((np.exp(p) * (p - q)).sum(axis=1))
            same.append(p.argmax(axis=1) == q.argmax(axis=1))
            rows = np.arange(19)
            nll.append(-q[rows, chunk[21:]])
            reference_nll.append(-p[rows, chunk[21:]])
        values, ours, theirs = (np.array(each, float) for each in (kl, nll, reference_nll))
        found = result.divergence
        assert found is not None
        assert result.reference_perplexity is not None
        assert found.tokens == values.size
        assert found.kl.value == pytest.approx(values.mean())
        assert found.kl.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(values.size))
        assert found.percentiles == pytest.approx(
            {percent: np.percentile(values, percent) for percent in (50, 90, 95, 99, 99.9)}
        )
        assert found.maximum == pytest.approx(values.max())
        assert found.same_top.value == pytest.approx(np.mean(same))
        assert found.log_ratio.value == pytest.approx((ours - theirs).mean())
        assert found.log_ratio.standard_error == pytest.approx(
            (ours - theirs).std(ddof=1) / math.sqrt(ours.size)
        )
        assert found.perplexity_ratio == pytest.approx(
            result.perplexity.value / result.reference_perplexity.value
        )
        delta = np.exp(-ours) - np.exp(-theirs)
        assert found.mean_delta_p.value == pytest.approx(delta.mean())
        assert found.rms_delta_p == pytest.approx(math.sqrt((delta**2).mean()))
        assert found.correlation == pytest.approx(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])
        assert result.perplexity.value == pytest.approx(math.exp(ours.mean()))
        assert result.reference_perplexity.value == pytest.approx(math.exp(theirs.mean()))
        assert found.truncation is None


def test_a_model_does_not_differ_from_itself() -> None:
    (result,) = evaluate(REFERENCE, texts()[:1], REFERENCE)
    assert result.divergence is not None
    assert result.divergence.maximum < 1e-12
    assert result.divergence.same_top.value == 1
    assert result.divergence.log_ratio.value == 0
    assert result.divergence.rms_delta_p == 0


def test_without_a_reference_there_is_perplexity_alone() -> None:
    alone, beside = (evaluate(MODEL, texts(), other) for other in (None, REFERENCE))
    for one, two in zip(alone, beside, strict=True):
        assert one.divergence is None
        assert one.reference_perplexity is None
        assert one.perplexity.value == pytest.approx(two.perplexity.value, rel=1e-6)


@pytest.mark.parametrize("top", [1, 10, VOCAB])
def test_a_saved_reference_says_the_same_within_its_own_bounds(top: int, tmp_path: Path) -> None:
    path = tmp_path / "reference"
    saving = save_reference(REFERENCE, texts(), path, about={"name": "tiny"}, top=top, samples=64)
    inline = evaluate(MODEL, texts(), REFERENCE)
    with ReferenceFile(path) as saved:
        assert saved.layout.model == {"name": "tiny"}
        results = evaluate(MODEL, saved.passages(), saved)
    for result, exact, recorded in zip(results, inline, saving, strict=True):
        found, expected = result.divergence, exact.divergence
        assert found is not None and expected is not None and found.truncation is not None
        assert found.truncation.low <= expected.kl.value + 1e-9
        assert expected.kl.value <= found.truncation.high + 1e-9
        assert abs(found.kl.value - expected.kl.value) <= 5 * found.truncation.standard_error + 1e-5
        assert found.same_top.value == expected.same_top.value
        assert found.log_ratio.value == pytest.approx(expected.log_ratio.value, abs=1e-5)
        assert found.rms_delta_p == pytest.approx(expected.rms_delta_p, abs=1e-5)
        assert exact.reference_perplexity is not None
        assert recorded.perplexity.value == pytest.approx(exact.reference_perplexity.value, rel=1e-5)
        assert (result.name, result.sha256) == (exact.name, exact.sha256)
        if top == VOCAB:
            assert found.truncation.high - found.truncation.low < 1e-4
            assert found.kl.value == pytest.approx(expected.kl.value, abs=1e-5)


def test_a_saved_reference_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_reference(REFERENCE, texts(), tmp_path / name, about={}, top=5, samples=9)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_reference(REFERENCE, texts(), tmp_path / "reference", about={}, progress=stop)
    assert list(tmp_path.iterdir()) == []
    assert REFERENCE.open_sessions == 0


def test_fewer_chunks_of_a_saved_reference(tmp_path: Path) -> None:
    save_reference(REFERENCE, texts(), tmp_path / "reference", about={}, top=VOCAB)
    with ReferenceFile(tmp_path / "reference") as saved:
        short = [dataclasses.replace(text, chunks=text.chunks[:2]) for text in saved.passages()]
        results = evaluate(MODEL, short, saved)
    expected = evaluate(
        MODEL, [dataclasses.replace(text, chunks=text.chunks[:2]) for text in texts()], REFERENCE
    )
    for result, exact in zip(results, expected, strict=True):
        assert result.divergence is not None and exact.divergence is not None
        assert result.chunks == 2
        assert result.divergence.kl.value == pytest.approx(exact.divergence.kl.value, abs=1e-5)


def test_other_texts_than_the_saved_reference_s_are_refused(tmp_path: Path) -> None:
    save_reference(REFERENCE, texts(), tmp_path / "reference", about={})
    with ReferenceFile(tmp_path / "reference") as saved, pytest.raises(UsageError, match="is not the one"):
        evaluate(MODEL, texts()[::-1], saved)


def test_saved_texts_need_the_tokenizer_that_they_were_cut_with(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = passage("prose", "über den Wolken: the quick brown fox; 東京の夜 🙂 " * 30, tokenizer, context=64)
    save_reference(TableModel(tokenizer.vocab_size), [text], tmp_path / "reference", about={})
    with ReferenceFile(tmp_path / "reference") as saved:
        (same,) = saved_passages(saved, tokenizer)
        np.testing.assert_array_equal(same.chunks, text.chunks)
        assert len(saved_passages(saved, tokenizer, chunks=1)[0].chunks) == 1
        monkeypatch.setattr(tokenizer, "encode", lambda text: [ord(letter) % 256 for letter in text])
        with pytest.raises(UsageError, match="different tokenizers"):
            saved_passages(saved, tokenizer)


def test_progress_counts_every_chunk() -> None:
    seen: list[Progress] = []
    evaluate(MODEL, texts(), progress=seen.append)
    assert [(each.done, each.total) for each in seen] == [(done, 10) for done in range(11)]
    assert [each.text for each in seen] == ["prose"] * 6 + ["code"] * 5


def test_json_is_json() -> None:
    model = TableModel()
    model.table *= 1e4  # its perplexity has no place in a float
    for result in evaluate(model, texts(), REFERENCE):
        document = json.loads(json.dumps(evaluation.as_json(result), allow_nan=False))
        assert document["perplexity"]["value"] is None
        assert document["divergence"]["percentiles"].keys() == {"50", "90", "95", "99", "99.9"}
        assert document["divergence"]["kl"]["value"] > 100
        assert document["context"] == 40
