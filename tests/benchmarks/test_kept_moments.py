from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bitqwen.calibrate import Calibration, imatrix
from bitqwen.calibrate.encoder import CalibratedEncoder
from bitqwen.calibrate.moments import second_moments
from bitqwen.calibrate.transformer import embed, rms_norm
from bitqwen.checkpoints import open_checkpoint
from bitqwen.errors import ModelFileError, UsageError
from bitqwen.gguf import TensorType
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Recipe, Statistics, TensorPlan

TEXT = Calibration(text="def add(first, second):\n    return first + second\n\n" * 400, tokens=512, chunk=64)
QUERY, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kept_moments():
    sys.path.insert(0, str(BENCHMARKS))
    import kept_moments

    yield kept_moments
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def measured(kept_moments, tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(layers=2, hidden=256, intermediate=512)
    checkpoint = open_checkpoint(source.folder)
    config = config_from_hf(checkpoint.config, source="test")
    ids = TEXT.ids(checkpoint)
    folder = tmp_path_factory.mktemp("moments") / "kept"
    return checkpoint, config, ids, kept_moments.measure(checkpoint, config, ids, folder)


def plans(config, tensor_type, method):
    return {
        spec.hf_name: TensorPlan(tensor_type, method) for spec in config.tensors() if spec.role == "matrix"
    }


@pytest.mark.parametrize("weight", [1.0, 40.0])
def test_moments_are_those_of_the_inputs(measured, weight):
    checkpoint, config, ids, kept = measured
    x = rms_norm(
        embed(checkpoint, config, ids.ravel()),
        checkpoint.read("model.layers.0.input_layernorm.weight"),
        config.rms_norm_eps,
    )
    np.testing.assert_allclose(
        kept.moments(QUERY).weighed(weight), second_moments(x, chunk=64, first_weight=weight), rtol=1e-5
    )
    np.testing.assert_allclose(kept.importance()[QUERY], np.mean(np.square(x), axis=0), rtol=1e-4)


def test_a_first_layer_is_quantised_as_by_a_run_of_its_own(kept_moments, measured):
    """Its inputs are the source's; those of later layers are not, once the first is quantised."""
    checkpoint, config, ids, kept = measured
    recipe, chosen = Recipe.parse("fit+gptq"), plans(config, TensorType.Q2_K, "mse")
    weights = dict.fromkeys(chosen, 3.0)
    ours = kept_moments.MomentsEncoder(checkpoint, kept, recipe, weights)
    theirs = CalibratedEncoder(checkpoint, config, chosen, ids, recipe, first_weights=weights)
    first, second = theirs.layer(0), theirs.layer(1)
    assert (ours.encode(QUERY, chosen[QUERY]).data == first[QUERY].data).mean() > 0.999
    assert (ours.encode(DOWN, chosen[DOWN]).data != second[DOWN].data).any()
    rows = checkpoint.read(kept.head)
    found = ours.head()(rows, chosen[QUERY], 0)
    plain = recipe.quantizer(Statistics(np.ones(rows.shape[1], np.float32)))(rows, chosen[QUERY], 0)
    assert (found.data != plain.data).mean() > 0.05


def test_kept_moments_know_of_no_earlier_errors(kept_moments, measured):
    checkpoint, _, _, kept = measured
    with pytest.raises(UsageError, match="earlier errors"):
        kept_moments.MomentsEncoder(checkpoint, kept, Recipe.parse("fit+propagate+gptq"), {})


def test_an_interrupted_run_goes_on_and_gives_the_same(kept_moments, measured, tmp_path):
    checkpoint, config, ids, kept = measured

    def interrupt(done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_moments.measure(checkpoint, config, ids, tmp_path / "kept", progress=interrupt)
    with pytest.raises(ModelFileError, match="holds no moments"):
        kept_moments.KeptMoments(tmp_path / "kept")
    seen = []
    again = kept_moments.measure(
        checkpoint, config, ids, tmp_path / "kept", progress=lambda done, _: seen.append(done)
    )
    assert seen == [1]
    np.testing.assert_array_equal(again.moments(DOWN).rest, kept.moments(DOWN).rest)
    np.testing.assert_array_equal(
        kept_moments.KeptMoments(tmp_path / "kept").importance()[QUERY], kept.importance()[QUERY]
    )
    assert not list((tmp_path / "kept").glob("*hidden*"))


def test_another_text_begins_anew(kept_moments, measured, tmp_path):
    checkpoint, config, ids, _ = measured
    folder = tmp_path / "kept"
    folder.mkdir()
    note = {"key": "another", "shape": list(ids.shape), "layers": 2, "inputs": {}}
    (folder / "begun.json").write_text(json.dumps(note))
    seen = []
    kept_moments.measure(checkpoint, config, ids, folder, progress=lambda done, _: seen.append(done))
    assert seen == [0, 1]


def test_importance_is_an_imatrix(measured, tmp_path):
    _, config, _, kept = measured
    kept.save_importance(tmp_path / "imatrix.gguf", config)
    loaded = imatrix.load(tmp_path / "imatrix.gguf")
    np.testing.assert_allclose(loaded["blk.1.ffn_down.weight"], kept.importance()[DOWN], rtol=1e-6)
    assert len(loaded) == 2 * 7


def test_a_folder_without_moments(kept_moments, tmp_path):
    with pytest.raises(ModelFileError, match="holds no moments"):
        kept_moments.KeptMoments(tmp_path)
