"""The screened head: which rows it computes, to the last bit, and that none that matters is left out."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.convert import convert
from bitqwen.engine import Batch, Model, Screen, memory
from bitqwen.errors import UnsupportedModelError, UsageError

IDS = np.random.default_rng(0).integers(0, 500, 40).tolist()


@pytest.fixture(scope="module")
def path(tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(tied=False, heads=8, kv_heads=2, hidden=512, head_dim=64, vocab_size=3000)
    return convert(source.folder, tmp_path_factory.mktemp("screen") / "w4.gguf", "w4").path


@pytest.fixture(scope="module")
def model(path):
    return Model.open(path, threads=2, exact_head=False, cache_positions=16384)


@pytest.fixture(scope="module")
def expected(path):
    return Model.open(path, threads=1, exact_head=True).logits(IDS)


def check(row, full, screen):
    """What a screen asks for is there, and what is there is right; which rows are."""
    there = np.isfinite(row)
    np.testing.assert_array_equal(row[there], full[there])
    assert np.isneginf(row[~there]).all()
    rows = len(full) if screen.rows is None else screen.rows
    counted = full.copy()
    counted[np.asarray(screen.lowered, dtype=int)] = -np.inf
    counted[rows:] = -np.inf
    wanted = np.ones(len(full), dtype=bool)
    wanted[rows:] = False
    assert not there[rows:].any()
    if screen.top is not None:
        wanted &= full >= np.sort(counted)[-screen.top]
    if screen.margin is not None:
        wanted &= full >= counted.max() - np.float32(screen.margin)
    assert there[wanted].all()
    return there


@pytest.mark.parametrize(
    "screen",
    [
        Screen(top=1),
        Screen(top=20),
        Screen(margin=0.5),
        Screen(top=5, margin=0.1),
        Screen(margin=0),
        Screen(top=3, rows=2001),
        Screen(top=2, lowered=range(0, 3000, 3), rows=2999),
        Screen(margin=0.1, lowered=[*range(1500)]),
    ],
)
def test_rows_that_matter_are_those_of_the_full_head(model, expected, screen):
    with model.session() as session:
        computed = [
            check(session.feed([token], screen=screen), expected[position], screen).mean()
            for position, token in enumerate(IDS)
        ]
        assert screen.top != 1 or np.mean(computed) < 0.99  # random weights: hardly a row stands out


def test_a_batch_changes_no_bit_of_a_screened_row(model, expected):
    screens = [Screen(top=1), Screen(top=12), Screen(top=5, margin=0.1)]
    sessions = [model.session() for _ in screens]
    alone = [model.session() for _ in screens]
    try:
        together = Batch(model).step([(s, IDS[: 3 + i]) for i, s in enumerate(sessions)], screens=screens)
        for i, screen in enumerate(screens):
            row = alone[i].feed(IDS[: 3 + i], screen=screen)
            np.testing.assert_array_equal(together[i], row)
            check(row, expected[2 + i], screen)
    finally:
        for session in sessions + alone:
            session.close()


@pytest.mark.parametrize("screens", [[Screen(top=1)] * 5, [Screen(top=11)] * 2, [Screen(margin=0.1)] * 2])
def test_a_batch_that_needs_many_rows_has_the_whole_head(model, expected, screens):
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(model.session()) for _ in screens]
        out = Batch(model).step([(session, IDS[:4]) for session in sessions], screens=screens)
    np.testing.assert_array_equal(out, [expected[3]] * len(screens))


def test_a_row_without_a_screen_is_whole(model, expected):
    with model.session() as first, model.session() as second:
        out = Batch(model).step([(first, IDS[:4]), (second, IDS[:5])], screens=[Screen(top=1), None])
        np.testing.assert_array_equal(out, expected[3:5])
    np.testing.assert_array_equal(model.logits(IDS), expected)


def test_without_the_head_a_screen_changes_nothing(path, expected):
    plain = Model.open(path, threads=1, exact_head=True)
    with plain.session() as session:
        np.testing.assert_array_equal(session.feed(IDS, screen=Screen(top=1)), expected[-1])


def test_its_memory_is_told_and_its_reads_are_few(path, model):
    plain = Model.open(path, threads=1, exact_head=True)
    extra = model.memory["weights"] - plain.memory["weights"]
    assert 0 < extra < plain.memory["weights"] / 4
    assert model.decode_bytes == plain.decode_bytes
    with model.session() as session, model.profile() as profile:
        session.feed(IDS, screen=Screen(top=1))
    assert profile.operation("head").calls == 0
    assert profile.operation("screen").calls == 1


def test_a_head_where_every_row_is_lowered_is_whole(model, expected):
    with model.session() as session:
        row = session.feed(IDS, screen=Screen(top=1, lowered=range(3000)))
    np.testing.assert_array_equal(row, expected[-1])


@pytest.mark.parametrize("screen", [Screen(top=129), Screen(margin=8.5)])
def test_where_most_rows_would_matter_the_head_is_whole(model, expected, screen):
    with model.session() as session, model.profile() as profile:
        np.testing.assert_array_equal(session.feed(IDS, screen=screen), expected[-1])
    assert profile.operation("screen").calls == 0


@pytest.mark.parametrize("vocab_size", [600, 608, 1001, 1023])
@pytest.mark.parametrize(
    ("hidden", "scheme"), [(128, "f16"), (384, "q8_0"), (256, "w4"), (256, "q3_k"), (512, "w2"), (256, "v2")]
)
def test_any_vocabulary_any_type_any_width(tiny_checkpoint, tmp_path, vocab_size, hidden, scheme):
    """Row blocks that are not full, 0 to 1023 rows of padding, heads of every kind of format."""
    source = tiny_checkpoint(
        tied=False, heads=hidden // 64, kv_heads=1, hidden=hidden, head_dim=64, vocab_size=vocab_size
    )
    path = convert(source.folder, tmp_path / "model.gguf", scheme).path
    model = Model.open(path, threads=2, exact_head=False)
    full = Model.open(path, threads=1, exact_head=True).logits(IDS)
    with model.session() as session:
        for position, token in enumerate(IDS):
            rows = (vocab_size, vocab_size - 1, 593, 17, 1)[position % 5]
            check(
                session.feed([token], screen=Screen(top=1 + position % 3, rows=rows)),
                full[position],
                Screen(top=min(1 + position % 3, rows), rows=rows),
            )


def test_every_instruction_set_makes_the_same_screen(path, tmp_path):
    """What is computed is decided by float sums in one order: each instruction set makes the same screen."""
    script = (
        "import sys, numpy as np\n"
        "from bitqwen.engine import Model, Screen\n"
        "session = Model.open(sys.argv[1], threads=1, exact_head=False).session()\n"
        "np.save(sys.argv[2], np.isfinite(session.feed([5, 6, 7], screen=Screen(top=2))))\n"
    )
    computed = []
    for isa in _native.usable_isas():
        out = tmp_path / f"{isa}.npy"
        subprocess.run(
            [sys.executable, "-c", script, str(path), str(out)],
            env={**os.environ, "BITQWEN_ISA": isa},
            check=True,
        )
        computed.append(np.load(out))
    for other in computed[1:]:
        assert (other != computed[0]).mean() < 0.02  # states differ in their last bits


@pytest.mark.parametrize("values", [{}, {"top": 0}, {"margin": -1.0}, {"margin": float("nan")}])
def test_impossible_screens_are_refused(values):
    with pytest.raises(UsageError):
        Screen(**values)


def test_rows_that_it_cannot_rotate_are_refused(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(tied=False, heads=6, kv_heads=2, hidden=192, head_dim=32)
    path = convert(source.folder, tmp_path / "w4.gguf", "w4").path
    with pytest.raises(UnsupportedModelError, match="multiple of 128") as caught:
        Model.open(path, exact_head=False)
    assert "without it" in caught.value.hint


@pytest.mark.real
def test_no_decision_of_a_real_model_is_missed(real_model):
    """80 states by 151,936 rows: 12 million decisions, of which the deviation allows one in 2e10 to fail."""
    from bitqwen.generation.tokenizer import Tokenizer
    from bitqwen.texts import packaged_names, packaged_text

    model = Model.open(real_model, context=512, exact_head=False)
    ids = Tokenizer.from_gguf(model.metadata).encode(packaged_text(packaged_names()[0]))[:96]
    full = model.logits(ids)
    greedy, few, computed = Screen(top=1), Screen(top=20, margin=2.0), []
    with model.session() as session:
        session.feed(ids[:16], logits="none")
        for position, token in enumerate(ids[16:], 16):
            screen = greedy if position % 2 else few
            share = check(session.feed([token], screen=screen), full[position], screen).mean()
            computed += [share] if screen is greedy else []
    assert np.mean(computed) < 0.2


def test_an_estimate_counts_the_screen(path):
    opened = {exact: Model.open(path, threads=1, context=256, exact_head=exact) for exact in (False, True)}
    screened, exact = opened[False], opened[True]
    more = screened.memory["weights"] - exact.memory["weights"]
    # Row blocks and pages are whole.
    assert (
        0
        <= more - _native.screen_bytes(screened.vocab_size, screened.config.hidden_size)
        < 16 * 34 * 4 + 4096
    )
    for model in opened.values():
        need = memory.estimate(model.config, weights=0, context=256, threads=1, screened=model.screened)
        assert need["cache"] == model.memory["cache"]
        assert need["scratch"] == model.memory["scratch"]
