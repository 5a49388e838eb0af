from __future__ import annotations

import numpy as np
import pytest

from bitqwen.gguf import TensorType
from bitqwen.quant import TensorPlan


def test_what_stands_out_is_spread_and_costs_less(script):
    rotations = script("rotations")
    random = np.random.default_rng(2)
    matrix = random.standard_normal((64, 256), np.float32) * 0.02
    matrix[:, 7::64] *= 30  # four columns that a scale of 64 weights goes by
    trial = rotations.Trial("fit+gptq", {"a.b_proj.weight": TensorPlan(TensorType.Q2_0, "mse")})
    moments = np.eye(256, dtype=np.float32)
    trial.run("a.b_proj.weight", matrix, moments, moments)
    row = trial.rows["a.b_proj.weight"]
    assert 0 < row["rotated"] < 0.7 * row["plain"]
    assert row["plain"] == pytest.approx(row["plain, calibration"])
    assert rotations.by_kind(trial.rows, "")["b_proj"] == pytest.approx(row["rotated"] / row["plain"])


@pytest.mark.parametrize(("length", "points", "mirrored"), [(3, 16, True), (2, 16, False)])
def test_points_that_there_are_lose_half_of_what_noise_does_or_less(script, length, points, mirrored):
    lost = script("triples").lost
    random = np.random.default_rng(3)
    book = random.standard_normal((points, length), np.float32)
    some = book[random.integers(0, points, 24000 // length)]
    if mirrored:
        some = some * random.choice(np.array([-1, 1], np.float32), (len(some), 1))
    exact = lost(some.reshape(20, 1200), np.ones(1200, np.float32), length, points, mirrored=mirrored)
    noise = random.standard_normal((20, 1200), np.float32)
    assert exact < 0.5 * lost(noise, np.ones(1200, np.float32), length, points, mirrored=mirrored)


def test_three_weights_in_five_bits_lose_more_than_two_in_four(script):
    triples = script("triples")
    noise = np.random.default_rng(4).standard_normal((64, 1200), np.float32)
    weights = np.ones(1200, np.float32)
    pairs = triples.lost(noise, weights, 2, 16, mirrored=False)
    found = triples.lost(noise, weights, 3, 16, mirrored=True)
    # Shannon's bound for a Gaussian, and what a uniform grid of as many bits loses.
    assert 2 ** (-2 * 2) < pairs < 0.13
    assert found > 2 ** (-2 * 5 / 3)
    assert 1.2 < found / pairs < 1.8
