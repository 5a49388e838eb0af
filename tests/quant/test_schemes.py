from __future__ import annotations

import pytest

from bitqwen import _native
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.quant import get, names


def test_every_scheme_plans_only_what_can_be_encoded():
    for name in names():
        scheme = get(name)
        for role, shape in [("matrix", (896, 896)), ("matrix", (64, 1536)), ("embedding", (512, 896))]:
            plan = scheme.plan(role, shape)
            assert _native.can_quantize(int(plan.tensor_type), plan.method), (name, role, shape)


def test_rows_that_are_no_multiple_of_256_fall_back():
    assert get("w4").plan("matrix", (8, 1536)).tensor_type == TensorType.Q4_K
    assert get("w4").plan("matrix", (8, 896)).tensor_type == TensorType.Q4_0
    assert get("ternary").plan("matrix", (8, 896)).tensor_type == TensorType.Q2_0
    assert get("w2").plan("embedding", (8, 896)).tensor_type == TensorType.Q8_0
    assert get("w2").plan("matrix", (8, 24)).tensor_type == TensorType.F16


def test_norms_and_biases_stay_float32():
    for name in names():
        assert get(name).plan("norm", (64,)).tensor_type == TensorType.F32
        assert get(name).plan("bias", (64,)).tensor_type == TensorType.F32


def test_bits_per_weight_count_the_scales():
    assert get("w2").bits_per_weight == 2.25
    assert get("w4").bits_per_weight == 4.5
    assert get("q8_0").bits_per_weight == 8.5
    assert get("ternary").bits_per_weight == 2.0625


def test_embedding_and_head_can_be_chosen():
    assert get("w2").plan("embedding", (8, 256), embedding="f16").tensor_type == TensorType.F16
    assert get("w2").plan("head", (8, 256), head="q4_k").tensor_type == TensorType.Q4_K
    assert get("w2").plan("head", (8, 256), embedding="f16").tensor_type == TensorType.Q6_K


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embedding": "q3"}, "--embedding 'q3' is not a type that can be written"),
        ({"embedding": "q6_k"}, "rows of 896 values do not fit its blocks of 256"),
    ],
)
def test_impossible_choices_say_what_is_allowed(arguments, message):
    with pytest.raises(UsageError, match=message):
        get("w4").plan("embedding", (8, 896), **arguments)


def test_an_unknown_scheme_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"w4, q3_k, v3, q2_k, v2\.5, w2, v2"):
        get("w3.5")
