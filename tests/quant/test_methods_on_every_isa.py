"""The same bytes from every instruction set that this CPU has (named in the test's id)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from bitqwen import _native

_PROGRAM = """
import hashlib, numpy as np
from bitqwen import _native
from bitqwen.gguf import TensorType
from bitqwen.quant import Recipe, Statistics
matrix = (np.random.default_rng(1).standard_t(5, (64, 1024)) * 0.02).astype(np.float32)
importance = np.random.default_rng(2).uniform(0.1, 9, 1024).astype(np.float32)
digest = hashlib.sha256()
for kind, fit in [("Q4_0", "mse"), ("Q4_K", "mse"), ("Q6_K", "mse"), ("Q2_0", "mse"), ("TQ2_0", "ternary"),
                  ("Q8_0", "plain"), ("Q4_0", "plain"), ("TQ2_0", "absmean"), ("F16", "plain")]:
    for weights in (None, importance):
        data, error, energy = _native.quantize(int(TensorType[kind]), fit, matrix, weights, 2)
        digest.update(data.tobytes())
        digest.update(repr((error, energy)).encode())
for kind in ("V2", "V2_5", "V3"):
    for weights in (None, importance):
        codebook = _native.fit_codebook(int(TensorType[kind]), matrix, weights, 3, 2)
        codes, scales = _native.assign_codes(int(TensorType[kind]), codebook, matrix, weights, 2)
        for part in (codebook, codes, scales, _native.pack_codes(int(TensorType[kind]), codes, scales)):
            digest.update(part.tobytes())
inputs = np.random.default_rng(4).standard_normal((1500, 1024), np.float32)
inputs[:, 1:] += inputs[:, :-1]
moments = inputs.T @ inputs / np.float32(1500)
recipe = Recipe.parse("fit+gptq+descent")
for kind, fit in [("Q4_K", "mse"), ("V2", "lloyd"), ("V2_5", "lloyd"), ("V3", "lloyd")]:
    statistics = Statistics(np.diag(moments).copy(), moments)
    encoded = recipe.run(matrix, TensorType[kind], method=fit, statistics=statistics, threads=2)
    digest.update(encoded.data.tobytes())
print(digest.hexdigest(), _native.isa_name())
"""


def digest(isa: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, "BITQWEN_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    value, live = result.stdout.split()
    assert live == isa
    return value


@pytest.fixture(scope="module")
def scalar() -> str:
    value = digest("scalar")
    assert value != hashlib.sha256().hexdigest()
    return value


@pytest.mark.parametrize("isa", [isa for isa in _native.usable_isas() if isa != "scalar"])
def test_bytes_equal_the_scalar_ones_natively_on(isa: str, scalar: str) -> None:
    assert digest(isa) == scalar
