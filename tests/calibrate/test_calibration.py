from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import Calibration, default_text
from bitqwen.calibrate.encoder import CalibratedEncoder
from bitqwen.calibrate.transformer import embed, rms_norm, run_layer
from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFFile
from bitqwen.models.registry import config_from_hf
from bitqwen.texts import held_out_in, packaged_names, packaged_text

SHAPES = [
    {"layers": 2},
    {"layers": 1, "heads": 4, "kv_heads": 1, "head_dim": 32, "tied": False},
    {"layers": 1, "rope_theta": 1e4, "bias_scale": 3.0},
]


def opened(source):
    checkpoint = open_checkpoint(source.folder)
    return checkpoint, config_from_hf(checkpoint.config, source="test")


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_by_layer_gives_what_the_engine_gives(tiny_checkpoint, tmp_path, shape):
    source = tiny_checkpoint(**shape, dtype="F16")
    checkpoint, config = opened(source)
    ids = np.random.default_rng(0).integers(0, 400, (2, 24))
    hidden = embed(checkpoint, config, ids.ravel())

    def weigh(names, _):
        return {name: checkpoint.read(name) for name in names}

    for layer in range(config.layers):
        run_layer(hidden, 24, layer, checkpoint, config, weigh)
    head = "model.embed_tokens.weight" if config.tied else "lm_head.weight"
    logits = (
        rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps) @ source.weights[head].T
    )
    convert(source.folder, tmp_path / "f16.gguf", "f16")
    model = Model.open(tmp_path / "f16.gguf", threads=1)
    for chunk in range(2):
        expected = model.logits(ids[chunk].tolist())
        np.testing.assert_allclose(
            logits[24 * chunk : 24 * chunk + 24], expected, atol=0.01 * np.abs(expected).max()
        )


TEXT = "def add(first, second):\n    return first + second\n\n" * 400


def calibration(recipe="fit+gptq+descent", **options):
    return Calibration(text=TEXT, tokens=512, chunk=64, recipe=recipe, **options)


def test_a_calibrated_file_is_nearer_to_its_source(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(layers=2)
    convert(source.folder, tmp_path / "f16.gguf", "f16")
    convert(source.folder, tmp_path / "plain.gguf", "q2_k")
    report = convert(source.folder, tmp_path / "swept.gguf", "q2_k", calibration=calibration())
    reference = Model.open(tmp_path / "f16.gguf", threads=1)
    ids = calibration().ids(opened(source)[0])[3].tolist()
    off = {}
    for name in ("plain", "swept"):
        off[name] = np.square(
            Model.open(tmp_path / f"{name}.gguf").logits(ids) - reference.logits(ids)
        ).mean()
    assert off["swept"] < 0.8 * off["plain"]
    assert 0 < report.lost_outputs < 0.2
    assert report.nbytes == (tmp_path / "swept.gguf").stat().st_size
    settings = GGUFFile(tmp_path / "swept.gguf").metadata["bitqwen.settings"]
    assert "fit+gptq+descent" in settings
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f16.gguf", "plain.gguf", "swept.gguf"]


def test_later_layers_are_fitted_to_what_earlier_ones_have_become(tiny_checkpoint, tmp_path):
    """The inputs of the second layer differ with the first one's type."""
    source = tiny_checkpoint(layers=2)
    checkpoint, config = opened(source)
    from bitqwen import quant

    met = []
    for scheme in ("q2_k", "q6_k"):
        plans = {
            spec.hf_name: quant.get(scheme).plan("matrix", spec.shape)
            for spec in config.tensors()
            if spec.role == "matrix"
        }
        encoder = CalibratedEncoder(
            checkpoint, config, plans, calibration().ids(checkpoint), quant.Recipe.parse("fit")
        )
        encoder.layer(0)
        encoder.layer(1)
        met.append(encoder.importance)
    first, second = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    np.testing.assert_array_equal(met[0][first], met[1][first])
    assert not np.array_equal(met[0][second], met[1][second])
    assert np.corrcoef(met[0][second], met[1][second])[0, 1] > 0.5


@pytest.mark.parametrize(
    ("scheme", "recipe"), [("q2_k", "fit+gptq+descent"), ("v2.5", "fit+propagate+gptq+descent")]
)
def test_an_interrupted_conversion_goes_on_where_it_was(
    tiny_checkpoint, tmp_path, monkeypatch, scheme, recipe
):
    source = tiny_checkpoint(layers=3)
    convert(source.folder, tmp_path / "whole.gguf", scheme, calibration=calibration(recipe))
    ran = []
    run = CalibratedEncoder._run

    def stopping(self, layer):
        if layer == 2 and len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(layer)
        return run(self, layer)

    monkeypatch.setattr(CalibratedEncoder, "_run", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(source.folder, tmp_path / "out.gguf", scheme, calibration=calibration(recipe, resume=True))
    assert not (tmp_path / "out.gguf").exists()
    ran.append(-1)
    convert(source.folder, tmp_path / "out.gguf", scheme, calibration=calibration(recipe, resume=True))
    assert ran == [0, 1, -1, 2]
    whole, out = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("whole", "out"))
    for name in whole.tensors:
        np.testing.assert_array_equal(whole.raw(name), out.raw(name))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.gguf", "whole.gguf"]


def test_layers_of_another_run_are_not_taken(tiny_checkpoint, tmp_path, monkeypatch):
    source = tiny_checkpoint(layers=2)
    monkeypatch.setattr(CalibratedEncoder, "finish", lambda self: None)
    convert(source.folder, tmp_path / "out.gguf", "q2_k", calibration=calibration(resume=True))
    convert(source.folder, tmp_path / "out.gguf", "q3_k", calibration=calibration(resume=True))
    convert(source.folder, tmp_path / "new.gguf", "q3_k", calibration=calibration())
    out, new = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("out", "new"))
    for name in new.tensors:
        np.testing.assert_array_equal(new.raw(name), out.raw(name))


def test_the_default_text_is_a_mix_and_nothing_that_is_reported_on():
    text = default_text(None)
    assert held_out_in(text) == []
    assert "canal at Harrowgate" in text
    assert "<|im_start|>assistant" in text
    assert "def " in text
    assert default_text(None) == text


def test_held_out_texts_are_refused(tiny_checkpoint):
    checkpoint, _ = opened(tiny_checkpoint(layers=1))
    with pytest.raises(UsageError, match="prose"):
        Calibration(text=TEXT + packaged_text("prose")[2000:4000]).ids(checkpoint)
    assert packaged_names()


def test_texts_and_counts_that_will_not_do(tiny_checkpoint):
    checkpoint, _ = opened(tiny_checkpoint(layers=1))
    with pytest.raises(UsageError, match="the least"):
        Calibration(text="short").ids(checkpoint)
    with pytest.raises(UsageError, match="allowed: 512 to"):
        Calibration(text=TEXT, tokens=5).ids(checkpoint)
