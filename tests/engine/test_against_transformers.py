"""Logits of random tiny checkpoints, with every real ratio of heads, against transformers in float32."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def reference(folder, ids):
    model = transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].numpy()


# Heads, key/value heads and head width of the 0.5B, 1.5B, 3B, 7B, 14B/32B and 72B models.
RATIOS = [(14, 2, 64), (12, 2, 128), (16, 2, 128), (28, 4, 128), (40, 8, 128), (64, 8, 128)]


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), RATIOS)
@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_transformers(tiny_checkpoint, tmp_path, heads, kv_heads, head_dim, tied):
    source = tiny_checkpoint(
        hidden=heads * head_dim if heads < 40 else 256,
        head_dim=head_dim,
        heads=heads,
        kv_heads=kv_heads,
        intermediate=320,
        layers=2,
        tied=tied,
        dtype="F16",
        bias_scale=8.0,
    )
    ids = np.random.default_rng(1).integers(0, 500, 90).tolist()
    expected = reference(source.folder, ids)
    model = Model.open(convert(source.folder, tmp_path / "f16.gguf", "f16").path)
    difference = np.abs(model.logits(ids) - expected).max()
    assert difference < 1e-2 * expected.std()


def test_yarn_equals_transformers_beyond_the_original_context(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(context=128, yarn=4.0, dtype="F16", tied=False)
    ids = np.random.default_rng(2).integers(0, 500, 400).tolist()
    expected = reference(source.folder, ids)
    model = Model.open(convert(source.folder, tmp_path / "f16.gguf", "f16").path, context=512)
    assert np.abs(model.logits(ids) - expected).max() < 1e-2 * expected.std()


@pytest.mark.parametrize(("kv", "most"), [("q8", 0.1), ("q4", 0.5)])
def test_a_quantised_cache_is_close_to_f16(tiny_checkpoint, tmp_path, kv, most):
    source = tiny_checkpoint(dtype="F16", tied=False)
    path = convert(source.folder, tmp_path / "f16.gguf", "f16").path
    ids = np.random.default_rng(3).integers(0, 500, 200).tolist()
    exact, rounded, older = (Model.open(path, kv=each).logits(ids) for each in ("f16", kv, "int8"))
    assert 0 < np.abs(exact - rounded).max() < most * exact.std()
    assert (kv == "q8") == np.array_equal(rounded, older)


def test_hidden_states_equal_those_of_transformers(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(dtype="F16", tied=False)
    ids = np.random.default_rng(4).integers(0, 500, 90).tolist()
    inner = transformers.Qwen2Model.from_pretrained(source.folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = inner(torch.tensor([ids])).last_hidden_state[0].numpy()
    model = Model.open(convert(source.folder, tmp_path / "f16.gguf", "f16").path)
    with model.session() as session:
        hidden = np.concatenate([session.hidden(ids[:50]), session.hidden(ids[50:])])
        assert session.tokens == ids
    assert np.abs(hidden - expected).max() < 1e-2 * expected.std()


def test_8000_positions_equal_transformers(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(context=8192, dtype="F16", layers=1, heads=4, kv_heads=2, rope_theta=1e6)
    ids = np.random.default_rng(6).integers(0, 500, 8001).tolist()
    model = Model.open(convert(source.folder, tmp_path / "f16.gguf", "f16").path, context=8192)
    with model.session() as session:
        session.feed(ids[:-1], logits="none")
        last = session.feed(ids[-1:])
    expected = reference(source.folder, ids)
    assert np.abs(last - expected[-1]).max() < 1e-2 * expected.std()
