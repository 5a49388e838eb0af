"""The output head is quantised by what it gets to see after the last layer."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import Calibration
from bitqwen.calibrate.encoder import CalibratedEncoder
from bitqwen.calibrate.moments import second_moments
from bitqwen.calibrate.transformer import embed, rms_norm, run_layer
from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.gguf import GGUFFile, TensorType
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import TensorPlan

TEXT = "def add(first, second):\n    return first + second\n\n" * 400
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def calibration(recipe, **options):
    return Calibration(text=TEXT, tokens=512, chunk=64, recipe=recipe, **options)


def head_inputs(source):
    """Second moments of the head's inputs with all layers as they are in the source."""
    checkpoint = open_checkpoint(source.folder)
    config = config_from_hf(checkpoint.config, source="test")
    ids = calibration("fit").ids(checkpoint)
    hidden = embed(checkpoint, config, ids.ravel())
    for layer in range(config.layers):
        run_layer(
            hidden, 64, layer, checkpoint, config, lambda names, _: {n: checkpoint.read(n) for n in names}
        )
    return second_moments(rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "plan", [TensorPlan(TensorType.Q3_K, "mse"), TensorPlan(TensorType.V2_5, "lloyd")], ids=["q3_k", "v2.5"]
)
def test_sweeps_take_from_what_its_outputs_lose(tiny_checkpoint, tmp_path, tied, plan):
    source = tiny_checkpoint(layers=1, hidden=256, intermediate=512, tied=tied)
    moments = head_inputs(source)
    gguf_name, name = (EMBEDDING, "model.embed_tokens.weight") if tied else (HEAD, "lm_head.weight")
    weights = np.asarray(source.weights[name], np.float32)
    lost = {}
    for recipe in (None, "fit", "fit+gptq"):
        path = tmp_path / f"{recipe}.gguf"
        chosen = None if recipe is None else calibration(recipe)
        convert(source.folder, path, "q8_0", calibration=chosen, plans={name: plan})
        error = GGUFFile(path).read(gguf_name) - weights
        lost[recipe] = float(np.vdot(error, error @ moments))
    assert lost["fit"] < lost[None]
    assert lost["fit+gptq"] < 0.9 * lost["fit"]


def test_an_embedding_that_is_no_head_is_left_alone(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(layers=1, tied=False)
    for name, chosen in (("plain", None), ("swept", calibration("fit+gptq"))):
        convert(source.folder, tmp_path / f"{name}.gguf", "q2_k", calibration=chosen)
    plain, swept = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("plain", "swept"))
    np.testing.assert_array_equal(plain.raw(EMBEDDING), swept.raw(EMBEDDING))
    assert (plain.raw(HEAD) != swept.raw(HEAD)).mean() > 0.01
    assert list(swept.tensors)[-1] == HEAD


def test_after_an_interrupt_in_the_head_no_layer_runs_again(tiny_checkpoint, tmp_path, monkeypatch):
    source = tiny_checkpoint(layers=2)
    convert(source.folder, tmp_path / "whole.gguf", "q2_k", calibration=calibration("fit+gptq"))
    head = CalibratedEncoder.head

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(CalibratedEncoder, "head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(
            source.folder, tmp_path / "out.gguf", "q2_k", calibration=calibration("fit+gptq", resume=True)
        )
    monkeypatch.setattr(CalibratedEncoder, "head", head)
    monkeypatch.setattr(CalibratedEncoder, "_run", lambda self, layer: pytest.fail("a layer ran again"))
    convert(source.folder, tmp_path / "out.gguf", "q2_k", calibration=calibration("fit+gptq", resume=True))
    whole, out = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("whole", "out"))
    np.testing.assert_array_equal(whole.raw(EMBEDDING), out.raw(EMBEDDING))
