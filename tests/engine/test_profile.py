"""Model.profile(): every operation is there, and its calls and bytes are those of the model's shape."""

from __future__ import annotations

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import UsageError

NAMES = [
    "embedding",
    "attention_norm",
    "query_key_value",
    "rope",
    "attention",
    "attention_quantize",
    "attention_output",
    "mlp_norm",
    "gate_up",
    "swiglu",
    "down",
    "output_norm",
    "screen",
    "head",
]


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(tied=False)
    path = convert(source.folder, tmp_path_factory.mktemp("profile") / "w4.gguf", "w4").path
    return Model.open(path, threads=2, batch=8)


def test_a_decode_step_reads_every_weight_once_and_all_of_the_cache(model):
    with model.session() as session:
        session.feed(range(20), logits="none")
        with model.profile() as profile:
            session.feed([3])
            session.feed([4])
        assert [operation.name for operation in profile.operations] == NAMES
        assert (profile.steps, profile.tokens) == (2, 2)
        for operation in profile.operations:
            once = operation.name in ("embedding", "output_norm", "head")
            if operation.name == "screen":  # this model has none
                assert (operation.calls, operation.bytes) == (0, 0)
                continue
            assert operation.calls == 2 * (1 if once else model.config.layers)
            assert 0 <= operation.waiting <= operation.seconds
        products = ["query_key_value", "attention_output", "gate_up", "down", "head"]
        assert sum(profile.operation(name).bytes for name in products) == 2 * model.decode_bytes
        position = model.memory["cache"] // model.cache_positions
        assert profile.operation("attention").bytes == (21 + 22) * position
        assert profile.operation("rope").bytes == 2 * position
        assert profile.operation("gate_up").bandwidth > 0
        assert profile.bytes == sum(operation.bytes for operation in profile.operations)


def test_measuring_changes_no_bit_and_ends_with_the_block(model):
    ids = np.arange(30).tolist()
    expected = model.logits(ids)
    with model.profile() as profile:
        np.testing.assert_array_equal(model.logits(ids), expected)
    assert (profile.steps, profile.tokens) == (4, 30)  # 8 at once
    assert profile.operation("gate_up").barriers > 0
    before = profile.seconds
    model.logits(ids)
    assert profile.seconds == before
    with model.profile() as again:
        pass
    assert (again.steps, again.seconds) == (0, 0)


def test_the_table_has_a_line_for_each_operation(model):
    with model.profile() as profile:
        model.logits([1, 2, 3])
    lines = str(profile).splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert sum(float(line.split()[2].rstrip("%")) for line in lines[1:]) == pytest.approx(100, abs=1)


def test_an_unknown_operation_is_refused_with_the_names(model):
    with model.profile() as profile:
        model.logits([1])
    with pytest.raises(UsageError, match="there is no operation 'softmax'") as caught:
        profile.operation("softmax")
    assert "gate_up" in caught.value.hint
