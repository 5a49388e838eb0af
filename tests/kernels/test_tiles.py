from __future__ import annotations

import pytest

from bitqwen.errors import UsageError
from bitqwen.kernels import SIZES, TARGETS, MatrixShape, Tile, choose, matrix_shapes, preset
from bitqwen.kernels.tiles import scale_columns


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_every_published_shape_has_a_tile(size, target):
    for shape in matrix_shapes(preset(size)):
        tile = choose(shape, target)
        assert shape.rows % tile.rows == 0
        assert tile.rows % tile.lanes == 0
        assert shape.cols % tile.cols == 0
        assert tile.cols % scale_columns(shape.cols)[1] == 0


def test_shapes_are_the_checkpoints_own():
    shapes = {(shape.rows, shape.cols): shape.names for shape in matrix_shapes(preset("7B"))}
    assert shapes == {
        (3584, 3584): ("attn_q", "attn_output"),
        (512, 3584): ("attn_k", "attn_v"),
        (18944, 3584): ("ffn_gate", "ffn_up"),
        (3584, 18944): ("ffn_down",),
    }


def test_scales_are_those_of_the_type_that_fits():
    assert scale_columns(1536) == (128, 256)  # TQ2_0
    assert scale_columns(896) == (64, 64)  # Q2_0


def test_given_sizes_are_taken():
    shape = MatrixShape(1536, 1536, ())
    assert choose(shape, TARGETS["arm"], rows=64, cols=512, lanes=32) == Tile(64, 512, 32)


@pytest.mark.parametrize(
    ("target", "given", "words"),
    [
        ("arm", {"rows": 96}, "BM must be a multiple of bm, 96 % 64 is 32"),
        ("arm", {"rows": 1024}, "M must be a multiple of BM, 1536 % 1024 is 512"),
        ("arm", {"cols": 128}, "BK must be a multiple of 256, the columns of a scale, 128 % 256 is 128"),
        ("arm", {"cols": 1024}, "K must be a multiple of BK, 1536 % 1024 is 512"),
        ("arm", {"lanes": 16}, "bm must be 32 or 64"),
        ("x86", {"lanes": 64}, "bm must be 32 here"),
        ("avx512", {"rows": 96}, "BM must be a multiple of bm"),
        ("x86", {"rows": -32}, "positive"),
    ],
)
def test_the_constraint_is_named(target, given, words):
    with pytest.raises(UsageError, match=words):
        choose(MatrixShape(1536, 1536, ()), TARGETS[target], **given)


def test_a_shape_that_nothing_fits():
    with pytest.raises(UsageError, match="K must be a multiple of 64"):
        choose(MatrixShape(128, 1000, ()), TARGETS["x86"])
    with pytest.raises(UsageError, match="M must be a multiple of BM"):
        choose(MatrixShape(100, 512, ()), TARGETS["arm"])


def test_an_unknown_size():
    with pytest.raises(UsageError, match="'8B'") as caught:
        preset("8B")
    assert "7B" in caught.value.hint
