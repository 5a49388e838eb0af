from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import Calibration
from bitqwen.calibrate.encoder import CalibratedEncoder, decoded
from bitqwen.calibrate.moments import second_moments
from bitqwen.calibrate.propagation import Aim, compensated
from bitqwen.calibrate.transformer import embed, run_layer
from bitqwen.checkpoints import open_checkpoint
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Recipe, TensorPlan

CHUNK, COLS, ROWS = 16, 24, 10


def problem(chunks=200, seed=0):
    random = np.random.default_rng(seed)
    mix = random.standard_normal((COLS, COLS)).astype(np.float32) / 4 + np.eye(COLS, dtype=np.float32)
    x = (random.standard_normal((chunks * CHUNK, COLS)) @ mix).astype(np.float32)
    matrix = random.standard_normal((ROWS, COLS)).astype(np.float32)
    return random, x, matrix


def off(matrix, source, x_source, x, gap=0.0):
    return np.square(x_source @ source.T + gap - x @ matrix.T).sum()


def test_what_earlier_errors_do_alike_to_all_tokens_is_made_up_for():
    random, x, matrix = problem()
    bent = (x @ (np.eye(COLS) + 0.1 * random.standard_normal((COLS, COLS)))).astype(np.float32)
    stream = np.zeros((len(x), ROWS), np.float32)
    found, share = compensated(matrix, Aim(x, None), bent, stream, second_moments(bent), chunk=CHUNK)
    assert share > 0.7
    assert off(found, matrix, x, bent) < 0.2 * off(matrix, matrix, x, bent)


def test_the_stream_is_made_up_for_too():
    random, x, matrix = problem()
    lost = (0.2 * x @ random.standard_normal((COLS, ROWS))).astype(np.float32)
    here = np.ones((len(x), ROWS), np.float32)
    found, share = compensated(matrix, Aim(x, here + lost), x, here, second_moments(x), chunk=CHUNK)
    assert share > 0.9
    assert off(found, matrix, x, x, lost) < 0.2 * off(matrix, matrix, x, x, lost)


def test_chance_is_not_learnt():
    random, x, matrix = problem(chunks=4)
    noisy = x + 0.3 * random.standard_normal(x.shape).astype(np.float32)
    stream = random.standard_normal((len(x), ROWS)).astype(np.float32)
    aim = Aim(x, stream + random.standard_normal(stream.shape).astype(np.float32))
    found, share = compensated(matrix, aim, noisy, stream, second_moments(noisy), chunk=CHUNK)
    assert share < 0.5  # least squares alone would take all on
    _, unseen, _ = problem(chunks=100, seed=1)
    unseen_noisy = unseen + 0.3 * random.standard_normal(unseen.shape).astype(np.float32)
    assert off(found, matrix, unseen, unseen_noisy) < 1.05 * off(matrix, matrix, unseen, unseen_noisy)


def test_first_tokens_count_as_much_as_they_are_said_to():
    random, x, matrix = problem()
    first = np.arange(0, len(x), CHUNK)
    bent = x.copy()
    bent[first] = (x[first] @ (np.eye(COLS) + 0.3 * random.standard_normal((COLS, COLS)))).astype(np.float32)
    stream = np.zeros((len(x), ROWS), np.float32)

    def left(weight):
        moments = second_moments(bent, chunk=CHUNK, first_weight=weight)
        options = {"chunk": CHUNK, "first_weight": weight}
        found, _ = compensated(matrix, Aim(x, None), bent, stream, moments, **options)
        return off(found, matrix, x[first], bent[first])

    assert left(1000.0) < 0.5 * left(0.01)


def test_no_more_is_taken_on_than_is_allowed_and_nothing_without_a_difference():
    _, x, matrix = problem()
    stream = np.zeros((len(x), ROWS), np.float32)
    moments = second_moments(x)
    found, share = compensated(matrix, Aim(x, None), x, stream, moments, chunk=CHUNK)
    assert share == 0.0
    np.testing.assert_array_equal(found, matrix)
    bent = (x * 1.1).astype(np.float32)
    options = {"chunk": CHUNK, "most": 0.25}
    assert compensated(matrix, Aim(x, None), bent, stream, second_moments(bent), **options)[1] == 0.25
    one_chunk = [x[:CHUNK], stream[:CHUNK]]
    assert compensated(matrix, Aim(bent[:CHUNK], None), *one_chunk, moments, chunk=CHUNK)[1] == 0.0


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    source = tiny_checkpoint(layers=3, hidden=256, intermediate=512)
    checkpoint = open_checkpoint(source.folder)
    return checkpoint, config_from_hf(checkpoint.config, source="test")


def test_the_stream_of_a_quantised_model_stays_nearer_to_its_source_s(model):
    """On a text that was not calibrated on."""
    checkpoint, config = model
    random = np.random.default_rng(3)
    ids, unseen = random.integers(0, 400, (64, 32)), random.integers(0, 400, (32, 32))
    plans = {
        spec.hf_name: TensorPlan(TensorType.V2, "lloyd") for spec in config.tensors() if spec.role == "matrix"
    }

    def source(names, _):
        return {name: checkpoint.read(name) for name in names}

    aim = embed(checkpoint, config, unseen.ravel())
    for layer in range(config.layers):
        run_layer(aim, 32, layer, checkpoint, config, source)
    distance = {}
    for recipe in ("fit+gptq", "fit+propagate+gptq"):
        encoder = CalibratedEncoder(checkpoint, config, plans, ids, Recipe.parse(recipe))
        stream = embed(checkpoint, config, unseen.ravel())
        for layer in range(config.layers):
            weights = {
                name: decoded(encoded, plans[name].tensor_type, checkpoint.shapes()[name])
                for name, encoded in encoder.layer(layer).items()
            }
            run_layer(stream, 32, layer, checkpoint, config, lambda names, _, w=weights: w)
        distance[recipe] = np.square(stream - aim).sum()
    assert distance["fit+propagate+gptq"] < 0.97 * distance["fit+gptq"]


def test_shares_that_are_none():
    assert Recipe.parse("fit+gptq").propagate == 0.0
    assert Recipe.parse("fit+propagate:0.5+gptq").propagate == 0.5
    assert Recipe.parse("fit+propagate").needs_moments
    with pytest.raises(UsageError, match="propagate takes a number from 0 to 1"):
        Recipe.parse("fit+propagate:2")
    assert Calibration(recipe="fit+propagate+gptq").settings["recipe"] == "fit+propagate+gptq"
