from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import self_written
from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(layers=2)
    path = tmp_path_factory.mktemp("written") / "model.gguf"
    convert(source.folder, path, "q8_0")
    return source, path


def written(path, *, tokens=320, chunk=64, **options):
    checkpoint = open_checkpoint(path)
    return self_written.write(
        Model.open(path, threads=1),
        Tokenizer(checkpoint.tokenizer()),
        ChatTemplate(checkpoint.chat_template),
        tokens=tokens,
        chunk=chunk,
        **options,
    )


def test_whole_chunks_of_known_tokens(model):
    _, path = model
    ids = written(path)
    tokenizer = Tokenizer(open_checkpoint(path).tokenizer())
    assert ids.shape == (5, 64)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.vocab_size
    assert not np.isin(ids, tokenizer.unused_ids).any()


def test_documents_begin_with_the_openings_in_turns(model):
    _, path = model
    tokenizer = Tokenizer(open_checkpoint(path).tokenizer())
    ids = written(path)
    assert tokenizer.decode(ids[0].tolist()).startswith(self_written._PROSE[0])
    assert tokenizer.decode(ids[1].tolist()).startswith(self_written._CODE[0])
    assert len({row.tobytes() for row in ids}) == len(ids)


def test_where_a_document_ends_another_begins(model, monkeypatch):
    _, path = model
    checkpoint = open_checkpoint(path)
    tokenizer = Tokenizer(checkpoint.tokenizer())
    end = max(tokenizer.stop_ids)
    drawn = iter([5, 6, end, 7] * 1000)
    monkeypatch.setattr(self_written, "_draw", lambda logits, random: next(drawn))
    (row,) = written(path, tokens=128, chunk=128).tolist()
    place = row.index(end)
    assert row[place - 2 : place] == [5, 6]
    assert tokenizer.decode(row[place + 1 :]).startswith(self_written._CODE[0])


def test_the_same_seed_gives_the_same_text_and_another_another(model):
    _, path = model
    first = written(path)
    np.testing.assert_array_equal(first, written(path))
    assert (first != written(path, seed=1)).mean() > 0.3


def test_a_small_cache_writes_fewer_at_once(model):
    """As many as it has room for; each row is drawn from what the model says of it."""
    _, path = model
    checkpoint = open_checkpoint(path)
    small = Model.open(path, threads=1, context=128, cache_positions=128)
    told = []
    ids = self_written.write(
        small,
        Tokenizer(checkpoint.tokenizer()),
        ChatTemplate(checkpoint.chat_template),
        tokens=192,
        chunk=64,
        progress=lambda done, total: told.append((done, total)),
    )
    assert ids.shape == (3, 64)
    assert told == [(128, 192), (192, 192)]


def test_only_likely_tokens_are_drawn():
    random = np.random.default_rng(0)
    logits = np.full(1000, -5.0, np.float32)
    logits[::10] = 3.0  # 100 that are likely
    logits[10:500:20] = 4.0
    best = set(np.argsort(-logits, kind="stable")[: 25 + 100].tolist())
    drawn = [self_written._draw(logits, random) for _ in range(300)]
    assert set(drawn) <= best
    assert len(set(drawn)) > 20
    # Probabilities are the softmax's: e times as often for a logit one higher.
    two = np.array([0.0, 1.0], np.float32)
    share = np.mean([self_written._draw(two, random) for _ in range(4000)])
    assert share == pytest.approx(np.e / (1 + np.e), abs=0.03)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_source_writes_its_text_and_leaves_nothing(model, tmp_path, kind):
    source, path = model
    ids = self_written.write_for(
        str(source.folder if kind == "folder" else path), tokens=128, chunk=64, folder=tmp_path, threads=1
    )
    np.testing.assert_array_equal(ids, written(path, tokens=128))
    assert list(tmp_path.iterdir()) == []


def test_floats_write_as_a_file_of_eight_bits(model, tmp_path, monkeypatch):
    source, _ = model
    floats, eight_bits = tmp_path / "f16.gguf", tmp_path / "q8_0.gguf"
    convert(source.folder, floats, "f16")
    convert(floats, eight_bits, "q8_0")
    schemes = []

    def noted(source, output, scheme, **options):
        schemes.append(scheme)
        return convert(source, output, scheme, **options)

    monkeypatch.setattr(self_written, "convert", noted)
    options = {"tokens": 64, "chunk": 64, "folder": tmp_path, "threads": 1}
    ids = self_written.write_for(str(floats), **options)
    np.testing.assert_array_equal(ids, self_written.write_for(str(eight_bits), **options))
    assert schemes == ["q8_0"]


def test_two_texts_in_turns():
    first, second = np.arange(8).reshape(4, 2), 100 + np.arange(4).reshape(2, 2)
    both = self_written.in_turns(first, second)
    assert both[:, 0].tolist() == [0, 100, 2, 4, 102, 6]
    np.testing.assert_array_equal(both[:, 1], both[:, 0] + 1)
