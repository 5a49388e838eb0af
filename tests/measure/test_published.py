"""The measured qualities that come with the package."""

from __future__ import annotations

import re

from bitqwen import quant
from bitqwen.convert.sizes import converted_bytes
from bitqwen.kernels import preset
from bitqwen.measure import published


def test_they_are_of_schemes_that_exist_and_of_the_size_they_name():
    found = published.load()
    assert found.schemes
    assert set(found.schemes) <= set(quant.names())
    config = preset("1.5b")
    assert found.is_of(config)
    assert not found.is_of(preset("7b"))
    for name, measured in found.schemes.items():
        # A file is its tensors and a vocabulary.
        assert 0 < measured.nbytes - converted_bytes(config, name) < 12e6
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", measured.date)
        assert measured.date in found.dates
        assert set(measured.kl) == set(measured.same_top) == {"prose", "code"}
        assert measured.worst == max(measured.kl.values()) > 0


def test_fewer_bits_lose_more():
    losses = {name: each.worst for name, each in published.load().schemes.items()}
    order = [losses[name] for name in ("w4", "v3", "v2.5", "ternary")]
    assert order == sorted(order)


def test_in_words():
    found = published.load()
    w4 = found.schemes["w4"]
    assert found.in_words("w4") == f"{w4.kl['prose']:.3g} / {w4.kl['code']:.3g}, {w4.verdict}"
    assert found.in_words("no such scheme") == "not measured"
    assert found.as_json("no such scheme") is None
    assert found.as_json("w4")["verdict"] == w4.verdict
