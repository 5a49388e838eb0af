"""Models trained for three levels keep them; what is not trained so is told apart."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFFile
from helpers.tiny_checkpoint import write_safetensors


def with_levels(source, scales_a_row):
    """The checkpoint with matrices of -s, 0 and s: one s, or ``scales_a_row`` in every row."""
    rng = np.random.default_rng(5)
    weights = dict(source.weights)
    for name, values in weights.items():
        if "layers" in name and values.ndim == 2:
            rows, cols = values.shape
            codes = rng.integers(-1, 2, (rows, scales_a_row or 1, cols // (scales_a_row or 1)))
            # Scales that float16 and bfloat16 hold: files then keep them to the last bit.
            scales = rng.integers(1, 9, (rows, scales_a_row, 1)) / 64 if scales_a_row else 3 / 64
            weights[name] = (codes * scales).reshape(rows, cols).astype(np.float32)
    write_safetensors(source.folder / "model.safetensors", weights, "BF16")
    return weights


def assert_unchanged(path, weights):
    file = GGUFFile(path)
    for i in range(2):
        for hf, name in (("self_attn.q_proj", "attn_q"), ("mlp.down_proj", "ffn_down")):
            expected = weights[f"model.layers.{i}.{hf}.weight"]
            np.testing.assert_array_equal(file.read(f"blk.{i}.{name}.weight"), expected)


@pytest.mark.parametrize("scheme", ["bitnet", "ternary"])
def test_one_scale_a_matrix_is_kept_without_force(tiny_checkpoint, tmp_path, scheme):
    source = tiny_checkpoint()
    weights = with_levels(source, 0)
    report = convert(source.folder, tmp_path / "out.gguf", scheme)
    assert report.relative_error == 0
    assert report.warnings == []
    assert_unchanged(tmp_path / "out.gguf", weights)


def test_one_scale_a_group_is_kept_by_ternary_and_refused_by_bitnet(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint()
    weights = with_levels(source, 1)
    convert(source.folder, tmp_path / "out.gguf", "ternary")
    assert_unchanged(tmp_path / "out.gguf", weights)
    with pytest.raises(UsageError, match="a scale for each group") as caught:
        convert(source.folder, tmp_path / "other.gguf", "bitnet")
    assert "--scheme ternary" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_bitnet_s_own_checkpoints_say_what_they_are(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(config={"quantization_config": {"quant_method": "bitnet"}})
    report = convert(source.folder, tmp_path / "out.gguf", "bitnet")
    values = source.weights["model.layers.0.mlp.up_proj.weight"]
    scale = np.abs(values.astype(np.float64)).mean()
    expected = np.clip(np.rint(values / np.float32(scale)), -1, 1) * np.float32(np.float16(scale))
    np.testing.assert_array_equal(GGUFFile(report.path).read("blk.0.ffn_up.weight"), expected)


@pytest.mark.parametrize("scheme", ["w2", "ternary"])
def test_schemes_that_ruin_the_model_say_so(tiny_checkpoint, tmp_path, scheme):
    report = convert(tiny_checkpoint().folder, tmp_path / "out.gguf", scheme)
    assert any("nonsense" in warning for warning in report.warnings)


@pytest.mark.parametrize("scheme", ["w4", "q4_0", "q8_0", "f16"])
def test_the_others_do_not(tiny_checkpoint, tmp_path, scheme):
    assert convert(tiny_checkpoint().folder, tmp_path / "out.gguf", scheme).warnings == []
