from __future__ import annotations

import numpy as np
import pytest

import gguf
from bitqwen.calibrate import Calibration, imatrix
from bitqwen.convert import convert
from bitqwen.errors import ModelFileError
from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType

TEXT = "def add(first, second):\n    return first + second\n\n" * 400


def calibration(**options):
    return Calibration(text=TEXT, tokens=512, chunk=64, **options)


@pytest.fixture(scope="module")
def saved(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imatrix")
    source = tiny_checkpoint(layers=2)
    path = folder / "imatrix.gguf"
    convert(
        source.folder,
        folder / "fit.gguf",
        "q2_k",
        calibration=calibration(recipe="fit", save_importance=path),
    )
    return source, folder, path


def test_what_is_saved_makes_the_same_file_again(saved, tmp_path):
    source, folder, path = saved
    convert(source.folder, tmp_path / "again.gguf", "q2_k", calibration=Calibration(importance=path))
    convert(source.folder, tmp_path / "plain.gguf", "q2_k")
    fit, again, plain = (
        GGUFFile(each) for each in (folder / "fit.gguf", tmp_path / "again.gguf", tmp_path / "plain.gguf")
    )
    changed = 0
    for name, tensor in fit.tensors.items():
        if tensor.type == TensorType.Q2_K:
            # The sums go through float32 once more, which may tip a code.
            assert (fit.raw(name) == again.raw(name)).mean() > 0.999
            changed += (fit.raw(name) != plain.raw(name)).mean() > 0.05
    assert changed > 8


def test_the_layout_is_llama_cpp_s(saved):
    _, _, path = saved
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_size"].contents() == 64
    assert reader.fields["imatrix.chunk_count"].contents() == 8
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert tensors["blk.1.ffn_down.weight.in_sum2"].shape.tolist() == [512, 1]
    assert tensors["blk.1.ffn_down.weight.counts"].data.ravel().tolist() == [512.0]
    assert len(tensors) == 2 * (2 * 7 + 1)  # and the head


def test_an_importance_matrix_of_another_model(saved, tiny_checkpoint, tmp_path):
    _, _, path = saved
    other = tiny_checkpoint(layers=2, intermediate=768)
    with pytest.raises(
        ModelFileError, match=r"512 columns for blk.0.ffn_down.weight, which has 768"
    ) as caught:
        convert(other.folder, tmp_path / "out.gguf", "q2_k", calibration=Calibration(importance=path))
    assert "another model" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sums", [[1.0, -1.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_impossible_values(tmp_path, sums):
    path = tmp_path / "bad.gguf"
    write(path, sums, [4.0])
    with pytest.raises(ModelFileError, match="impossible values for blk"):
        imatrix.load(path)


@pytest.mark.parametrize("count", [[0.0], [-1.0], [np.nan], [1.0, 2.0]])
def test_impossible_counts(tmp_path, count):
    path = tmp_path / "bad.gguf"
    write(path, [1.0, 2.0], count)
    with pytest.raises(ModelFileError, match="impossible values"):
        imatrix.load(path)


def test_a_model_is_no_importance_matrix(saved):
    _, folder, _ = saved
    with pytest.raises(ModelFileError, match="is no importance matrix"):
        imatrix.load(folder / "fit.gguf")


def write(path, sums, count):
    with GGUFWriter(path) as writer:
        writer.add_metadata({"general.type": "imatrix"})
        for name, values in (("in_sum2", sums), ("counts", count)):
            writer.add_tensor(f"blk.0.attn_q.weight.{name}", (1, len(values)), TensorType.F32)
        writer.begin()
        for name, values in (("in_sum2", sums), ("counts", count)):
            writer.write(f"blk.0.attn_q.weight.{name}", np.array(values, np.float32).data)
        writer.finish()
