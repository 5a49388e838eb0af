from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate.sensitivity import sensitivities
from bitqwen.calibrate.transformer import embed, rms_norm, run_layer
from bitqwen.checkpoints import open_checkpoint
from bitqwen.models.registry import config_from_hf

CHUNK = 32


def predictions(checkpoint, config, ids, noise):
    """Log-probabilities, with noise added to matrices by name: float64 [tokens, vocab]."""

    def weigh(names, _):
        return {name: checkpoint.read(name) + noise.get(name, np.float32(0)) for name in names}

    table = checkpoint.read("model.embed_tokens.weight") + noise.get(
        "model.embed_tokens.weight", np.float32(0)
    )
    hidden = table[ids.ravel()]
    for layer in range(config.layers):
        run_layer(hidden, CHUNK, layer, checkpoint, config, weigh)
    head = table
    if not config.tied:
        head = checkpoint.read("lm_head.weight") + noise.get("lm_head.weight", np.float32(0))
    logits = (rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps) @ head.T).astype(
        np.float64
    )
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def output_energies(checkpoint, config, ids):
    """Mean squared length of each matrix's outputs."""
    found = {}

    def weigh(names, x):
        for name in names:
            found[name] = float(np.square(x @ checkpoint.read(name).T).sum(axis=1).mean())
        return {name: checkpoint.read(name) for name in names}

    hidden = embed(checkpoint, config, ids.ravel())
    for layer in range(config.layers):
        run_layer(hidden, CHUNK, layer, checkpoint, config, weigh)
    if not config.tied:
        x = rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps)
        found["lm_head.weight"] = float(np.square(x @ checkpoint.read("lm_head.weight").T).sum(axis=1).mean())
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_noise_costs_what_the_sensitivity_says(tiny_checkpoint, tied):
    """Each matrix alone: the KL divergence that a little noise really causes."""
    source = tiny_checkpoint(layers=2, tied=tied, hidden=128, intermediate=256, dtype="F32")
    checkpoint = open_checkpoint(source.folder)
    config = config_from_hf(checkpoint.config, source="test")
    random = np.random.default_rng(1)
    ids = random.integers(0, 400, (24, CHUNK))
    found = sensitivities(checkpoint, config, ids)
    matrices = {spec.hf_name for spec in config.tensors() if spec.role in ("matrix", "embedding", "head")}
    assert set(found) == matrices & set(checkpoint.names())
    exact = predictions(checkpoint, config, ids, {})
    energy = output_energies(checkpoint, config, ids)
    share = 1e-4
    ratios = []
    for name, sensitivity in found.items():
        costs = []
        for _ in range(3):
            matrix = checkpoint.read(name)
            noise = random.standard_normal(matrix.shape).astype(np.float32)
            if name == "model.embed_tokens.weight":
                noise *= np.sqrt(share * np.mean(np.square(matrix)))
            else:
                # Each column costs the outputs as much, as with importance.
                noise /= np.sqrt(sensitivity.importance + 0.01 * sensitivity.importance.mean())
                noise *= np.sqrt(share * energy[name] / matrix.size)
            off = predictions(checkpoint, config, ids, {name: noise})
            costs.append(float(np.mean(np.sum(np.exp(exact) * (exact - off), axis=1))))
        ratios.append(np.mean(costs) / (sensitivity.nats * share))
    # Each is an estimate from a few tokens and one draw of noise a matrix.
    assert min(ratios) > 0.5
    assert max(ratios) < 2
    assert 0.8 < np.exp(np.mean(np.log(ratios))) < 1.25


def test_importance_is_the_inputs_mean_square(tiny_checkpoint):
    source = tiny_checkpoint(layers=1, dtype="F32")
    checkpoint = open_checkpoint(source.folder)
    config = config_from_hf(checkpoint.config, source="test")
    ids = np.random.default_rng(0).integers(0, 400, (2, CHUNK))
    found = sensitivities(checkpoint, config, ids)
    x = rms_norm(
        embed(checkpoint, config, ids.ravel()),
        checkpoint.read("model.layers.0.input_layernorm.weight"),
        config.rms_norm_eps,
    )
    np.testing.assert_allclose(
        found["model.layers.0.self_attn.q_proj.weight"].importance, np.square(x).mean(axis=0), rtol=1e-4
    )
