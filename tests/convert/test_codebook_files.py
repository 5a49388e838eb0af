"""Files whose matrices are vectors from a codebook: what they hold, that they run, what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import Calibration
from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import ModelFileError
from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType, codebook_name

SMALL = {"hidden": 256, "intermediate": 512, "layers": 2}
SCHEMES = {"v2": TensorType.V2, "v2.5": TensorType.V2_5, "v3": TensorType.V3}
GATE, GATE_CODEBOOK = "blk.0.ffn_gate.weight", "blk.0.ffn_gate.codebook"
# A recipe without `rotate`: files of rotated columns have tests of their own.
FIT = Calibration(
    text="def add(first, second):\n    return first + second\n\n" * 40, tokens=512, recipe="fit"
)


@pytest.fixture(scope="module", params=SCHEMES)
def converted(request, tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("codebooks") / "out.gguf"
    report = convert(tiny_checkpoint(**SMALL, tied=True).folder, path, request.param, calibration=FIT)
    return request.param, path, report


def rewritten(source, target, change):
    """A copy of a file with its tensors as ``change(name, info, bytes)`` wants them.

    It returns a tensor's type, shape and bytes, or ``None`` to leave it out.
    """
    file = GGUFFile(source)
    changed = {name: change(name, info, file.raw(name)) for name, info in file.tensors.items()}
    tensors = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with GGUFWriter(target) as writer:
        for key in file.metadata:
            writer.add_value(key, file.metadata[key], file.metadata.value_type(key))
        for name, (tensor_type, shape, _) in tensors.items():
            writer.add_tensor(name, shape, tensor_type)
        writer.begin()
        for name, (_, _, data) in tensors.items():
            writer.write(name, data)
        writer.finish()
    return target


def test_block_matrices_have_codebooks_beside_them(converted):
    scheme, path, report = converted
    file = GGUFFile(path)
    assert file.tensors[GATE].type == SCHEMES[scheme]
    assert file.tensors[GATE_CODEBOOK].type == TensorType.I8
    matrices = [name for name, info in file.tensors.items() if info.type == SCHEMES[scheme]]
    assert len(matrices) == 2 * 7
    assert {codebook_name(name) for name in matrices} == {n for n in file.tensors if n.endswith("codebook")}
    assert report.nbytes == path.stat().st_size
    assert file.metadata["bitqwen.scheme"] == scheme
    assert report.relative_error < 0.2


def test_logits_are_those_of_the_dequantised_weights(converted, tmp_path):
    """The same file with the matrices' values as float32: only activations are rounded differently."""
    _, path, _ = converted

    def dequantise(name, info, data):
        if name.endswith(".codebook"):
            return None
        return TensorType.F32, info.shape, GGUFFile(path).read(name)

    reference = rewritten(path, tmp_path / "float.gguf", dequantise)
    ids = list(range(5, 45))
    ours = Model.open(path, context=64).logits(ids)
    theirs = Model.open(reference, context=64).logits(ids)
    difference = np.square(ours - theirs).sum() / np.square(theirs - theirs.mean(axis=1, keepdims=True)).sum()
    assert 0 < difference < 1e-3


def test_prefill_and_decode_give_the_same_bits(converted):
    _, path, _ = converted
    model = Model.open(path, context=64)
    ids = list(range(30, 50))
    whole = model.logits(ids)
    session = model.session()
    for position, token in enumerate(ids):
        np.testing.assert_array_equal(session.feed([token]).reshape(-1), whole[position])


def test_such_a_file_is_a_source_too(converted, tmp_path):
    _, path, _ = converted
    checkpoint = open_checkpoint(path)
    assert not [name for name in checkpoint.names() if "codebook" in name]
    convert(path, tmp_path / "again.gguf", "f16")
    again = GGUFFile(tmp_path / "again.gguf")
    assert GATE_CODEBOOK not in again.tensors
    expected = GGUFFile(path).read(GATE).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(again.read(GATE), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kind, shape, data: None, f"in tensor '{GATE_CODEBOOK}', which is missing"),
        (lambda kind, shape, data: (TensorType.F32, shape, data.astype(np.float32)), "which is of type F32"),
        (lambda kind, shape, data: (kind, (shape[0] // 2, 4), data), "which has another shape"),
        (lambda kind, shape, data: (kind, shape, np.full(shape, -128, np.int8)), "holds -128"),
    ],
)
def test_a_wrong_codebook_is_refused_by_name(converted, tmp_path, change, message):
    _, path, _ = converted

    def damage(name, info, data):
        tensor = info.type, info.shape, data
        return change(*tensor) if name == GATE_CODEBOOK else tensor

    damaged = rewritten(path, tmp_path / "damaged.gguf", damage)
    for use in (lambda: GGUFFile(damaged).read(GATE), lambda: Model.open(damaged, context=64)):
        with pytest.raises(ModelFileError) as error:
            use()
        assert message in str(error.value)
        assert GATE in str(error.value)


def test_a_codebook_that_no_matrix_asks_for_is_refused(converted, tmp_path):
    _, path, _ = converted

    def widen(name, info, data):
        if name == GATE:
            return TensorType.F32, info.shape, GGUFFile(path).read(name)
        return info.type, info.shape, data

    stray = rewritten(path, tmp_path / "stray.gguf", widen)
    with pytest.raises(ModelFileError, match=GATE_CODEBOOK):
        Model.open(stray, context=64)
