"""One result whoever computes it: threads, chunks, batches, forks; and what sessions refuse."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitqwen.convert import convert
from bitqwen.engine import Batch, Model
from bitqwen.errors import BitqwenError, ContextLengthError, ModelFileError, ResourceError, UsageError

IDS = np.random.default_rng(0).integers(0, 500, 150).tolist()


@pytest.fixture(scope="module")
def path(tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(tied=False, heads=6, kv_heads=2, hidden=384 * 2, head_dim=128, context=2048)
    return convert(source.folder, tmp_path_factory.mktemp("engine") / "w4.gguf", "w4").path


@pytest.fixture(scope="module")
def model(path):
    return Model.open(path, threads=2, context=1024, cache_positions=8192)


@pytest.fixture(scope="module")
def expected(model):
    return model.logits(IDS)


@pytest.mark.parametrize(("threads", "batch"), [(1, 512), (2, 512), (3, 7), (2, 1), (1, 64)])
def test_threads_and_chunks_change_no_bit(path, expected, threads, batch):
    other = Model.open(path, threads=threads, batch=batch, context=1024)
    np.testing.assert_array_equal(other.logits(IDS), expected)


def test_token_by_token_changes_no_bit(model, expected):
    with model.session() as session:
        for position, token in enumerate(IDS[:40]):
            np.testing.assert_array_equal(session.feed([token]), expected[position])


def test_long_contexts_split_between_threads_change_no_bit(path):
    ids = np.random.default_rng(4).integers(0, 500, 1400).tolist()
    results = []
    for threads in (1, 3):
        other = Model.open(path, threads=threads, context=2048)
        with other.session() as session:
            session.feed(ids, logits="none")
            results.append(session.feed([7]))
    np.testing.assert_array_equal(results[0], results[1])


def test_a_batch_gives_rows_only_for_what_is_wanted(model, expected):
    with model.session() as first, model.session() as second, model.session() as third:
        work = [(first, IDS[:3]), (second, IDS[:64]), (third, IDS[:65])]
        rows = Batch(model).step(work, wanted=[True, False, True])
        np.testing.assert_array_equal(rows, [expected[2], expected[64]])
        assert len(second) == 64


def test_a_batch_changes_no_bit(model, expected):
    lengths = [3, 64, 65, 150, 1]
    sessions = [model.session() for _ in lengths]
    out = Batch(model).step([(s, IDS[:n]) for s, n in zip(sessions, lengths, strict=True)])
    for row, length in zip(out, lengths, strict=True):
        np.testing.assert_array_equal(row, expected[length - 1])
    out = Batch(model).step([(s, [IDS[len(s)]]) for s in sessions if len(s) < 150])
    for row, length in zip(out, [n for n in lengths if n < 150], strict=True):
        np.testing.assert_array_equal(row, expected[length])
    for session in sessions:
        session.close()


class Plain:
    """What a session should be: a list of tokens."""

    def __init__(self, session):
        self.session = session
        self.tokens = []


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_forks_and_truncations_are_those_of_plain_lists(model, expected, data):
    live = [Plain(model.session())]
    for _ in range(data.draw(st.integers(1, 12))):
        one = data.draw(st.sampled_from(live))
        kind = data.draw(st.sampled_from(["feed", "truncate", "fork", "close"]))
        if kind == "feed" and len(one.tokens) < 130:
            count = data.draw(st.integers(1, 20))
            ids = IDS[len(one.tokens) : len(one.tokens) + count]
            got = one.session.feed(ids)
            one.tokens += ids
            np.testing.assert_array_equal(got, expected[len(one.tokens) - 1])
        elif kind == "truncate":
            keep = data.draw(st.integers(0, len(one.tokens)))
            one.session.truncate(keep)
            del one.tokens[keep:]
        elif kind == "fork" and len(live) < 5:
            other = Plain(one.session.fork())
            other.tokens = list(one.tokens)
            live.append(other)
        elif kind == "close" and len(live) > 1:
            live.remove(one)
            one.session.close()
        assert one.session._sequence is None or one.session.tokens == one.tokens
    for one in live:
        one.session.close()


def test_closed_and_collected_sessions_give_their_memory_back(model):
    gc.collect()  # what other tests left
    free = model._native.free_positions()
    session = model.session()
    session.feed(IDS)
    assert model._native.free_positions() < free
    del session
    gc.collect()
    assert model._native.free_positions() == free


def test_a_full_cache_is_an_error_that_changes_nothing(path):
    small = Model.open(path, context=128, cache_positions=128)
    one, two = small.session(), small.session()
    one.feed(IDS[:100])
    with pytest.raises(ResourceError, match="free"):
        two.feed(IDS[:100])
    assert two.tokens == []
    one.close()
    assert two.feed(IDS[:100]) is not None


def test_more_tokens_than_the_context_names_both_numbers(model):
    with model.session() as session, pytest.raises(ContextLengthError, match=r"1025.*1024"):
        session.feed([1] * 1025)


@pytest.mark.parametrize(("ids", "message"), [([], "without tokens"), ([-1], "-1"), ([512], "512")])
def test_impossible_tokens_are_refused(model, ids, message):
    with model.session() as session, pytest.raises(UsageError, match=message):
        session.feed(ids)


def test_a_closed_session_says_so(model):
    session = model.session()
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.feed([1])


def test_a_session_twice_in_a_step_is_refused(model):
    with model.session() as session, pytest.raises(UsageError, match="twice"):
        Batch(model).step([(session, [1]), (session, [2])])


def test_a_context_beyond_the_model_is_refused(path):
    with pytest.raises(UsageError, match="2048"):
        Model.open(path, context=4096)


def test_damaged_weights_are_found_when_loading(path, tmp_path):
    from bitqwen.gguf import GGUFFile

    tensor = GGUFFile(path).tensors["blk.1.ffn_norm.weight"]
    data = bytearray(path.read_bytes())
    data[tensor.offset : tensor.offset + 4] = np.float32("nan").tobytes()
    (tmp_path / "nan.gguf").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"blk\.1\.ffn_norm\.weight"):
        Model.open(tmp_path / "nan.gguf")


def test_a_cut_file_is_refused(path, tmp_path):
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BitqwenError, match="cut"):
        Model.open(tmp_path / "cut.gguf")
