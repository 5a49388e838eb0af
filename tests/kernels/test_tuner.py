from __future__ import annotations

import pytest

from bitqwen import _native
from bitqwen.errors import UnsupportedModelError
from bitqwen.gguf import TensorType
from bitqwen.kernels import candidates, compiler, tuner
from bitqwen.kernels.plans import Choice
from bitqwen.kernels.products import Product, ProductKey

DEFAULT = Choice("a", 64, 0)


def test_losers_are_dropped_and_the_best_round_counts():
    times = {DEFAULT: [3.0] * 9, Choice("b", 64, 0): [1.5, 1.0, 2.0], Choice("c", 64, 0): [9.0]}
    turns = []

    def seconds(choice):
        turns.append(choice)
        of = times[choice]
        return of.pop(0) if len(of) > 1 else of[0]

    best = tuner.run_off(list(times), seconds)
    assert best == {DEFAULT: 3.0, Choice("b", 64, 0): 1.0, Choice("c", 64, 0): 9.0}
    assert turns.count(Choice("c", 64, 0)) == 1
    assert turns.count(DEFAULT) == turns.count(Choice("b", 64, 0)) > 3


def test_no_round_begins_after_the_time_is_up():
    turns = []

    def seconds(choice):
        turns.append(choice)
        return 1.0

    choices = [DEFAULT, Choice("b", 64, 0)]
    assert set(tuner.run_off(choices, seconds, until=0.0)) == set(choices)
    assert turns == choices


def test_every_instruction_set_and_tile_is_tried():
    isas = [("a", 8), ("b", 4)]
    assert tuner.kernel_candidates(DEFAULT, isas, 1) == [DEFAULT, Choice("b", 64, 0)]
    found = tuner.kernel_candidates(Choice("a", 64, 8), isas, 128)
    assert found[0] == Choice("a", 64, 8)
    assert {(c.kernels, c.tile) for c in found} == {
        ("a", 8), ("a", 6), ("a", 4), ("b", 4), ("b", 3), ("b", 2)
    }  # fmt: skip


@pytest.mark.parametrize("rows", [1, 16, 100, 2048, 37888])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_cuts_are_whole_blocks_and_not_more_than_there_are(rows, threads):
    for choice in (DEFAULT, Choice("a", 64, 0, "lut-x.so")):
        found = tuner.cut_candidates(choice, rows, threads)
        assert len(found) == len(set(found)) or choice.library
        assert all(c.rows % 16 == 0 and 0 < c.rows < rows + 64 for c in found)
        assert all(c.rows % 64 == 0 for c in found if c.library)


def product(name, tensor_type, rows, cols):
    return Product(ProductKey(name, rows, cols), tensor_type, ("attn_output",), 1, rows)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path))
    monkeypatch.setattr(tuner, "_PEAK_BYTES", 1 << 20)
    monkeypatch.setattr(tuner, "_LEAST_BYTES", 1 << 18)
    monkeypatch.setattr(tuner, "_CACHES", 0)
    monkeypatch.setattr(tuner, "_PREFILL_WORK", 1e6)


def test_a_product_is_timed_for_each_batch(small):
    work = [product("Q4_K", TensorType.Q4_K, 320, 256), product("F16", TensorType.F16, 64, 128)]
    told = []
    found = tuner.tune(work, threads=2, progress=lambda *args: told.append(args[1:]))
    assert [(e.key, e.batch) for e in found] == [
        (p.key, batch) for p in work for batch in ("1", "2-4", "prefill")
    ]
    assert told == [(e.batch, i, 6) for i, e in enumerate(found)]
    usable = _native.usable_isas()
    for e in found:
        assert 0 < e.winner.seconds <= e.default.seconds
        assert e.default.choice.kernels == _native.isa_name()
        assert e.winner.choice.kernels in usable
        assert e.bytes >= e.timed_rows * e.key.cols // 2
        assert e.loser is None or e.loser.choice != e.winner.choice


def test_generated_kernels_compete(small):
    if compiler.find() is None or candidates.target_here() is None:
        pytest.skip("no compiler, or no generated kernels for this CPU")
    work = [product("ternary", TensorType.TQ2_0, 256, 512), product("Q2_0", TensorType.Q2_0, 256, 192)]
    made = candidates.compiled(work)
    assert made.why_not == ""
    assert _native.load_generated(str(compiler.library_folder() / made.libraries[0]))
    timer = _native.ProductTimer(int(TensorType.TQ2_0), 256, 512, 2, 0)
    choice = tuner.generated_candidate(Choice(*timer.default_plan(1)), made.libraries[0])
    assert tuner.usable(choice, lambda c: timer.seconds(1, c.native()))
    assert 0 < timer.generated_bytes <= timer.bytes
    other = _native.ProductTimer(int(TensorType.TQ2_0), 256, 1024, 2, 0)  # another shape
    assert not tuner.usable(choice, lambda c: other.seconds(1, c.native()))
    found = tuner.tune(work, threads=2, generated=made.libraries)
    seen = {c.library for e in found for c in (e.winner.choice, *([e.loser.choice] if e.loser else []))}
    assert seen <= {"", made.libraries[0]}


def test_models_without_ternary_weights_have_no_candidates(small):
    made = candidates.compiled([product("Q4_K", TensorType.Q4_K, 256, 512)])
    assert made.libraries == []
    assert "ternary" in made.why_not


def test_a_generated_kernel_with_other_bits_is_refused(small):
    target = candidates.target_here()
    if compiler.find() is None or target is None:
        pytest.skip("no compiler, or no generated kernels for this CPU")
    from bitqwen.kernels import MatrixShape, choose
    from bitqwen.kernels.generator import generate_for

    shape = MatrixShape(128, 512, ())
    made = generate_for([(shape, choose(shape, target))], target, model="m", command="c")
    broken = made.header.replace("v - 31 * h)", "v - 31 * h + 1)")
    assert broken != made.header
    path = compiler.shared_library(broken, target.flags)
    with pytest.raises(UnsupportedModelError, match="does not give the scalar kernels' bits"):
        _native.load_generated(str(path))
