from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"

# The lines that are read, with some of their neighbours.
PRINTED = """
====== Perplexity statistics ======
Mean PPL(Q)                   :  13.579000 ±   0.541000
Mean PPL(base)                :  11.223300 ±   0.428000
Cor(ln(PPL(Q)), ln(PPL(base))):  96.12%
Mean ln(PPL(Q)/PPL(base))     :   0.190500 ±   0.011000

====== KL divergence statistics ======
Mean    KLD:   0.242100 ±   0.006100
Maximum KLD:   6.154100
99.9%   KLD:   3.212100
Median  KLD:   0.100300
Minimum KLD:  -0.000010

====== Token probability statistics ======
Mean    Δp: -3.200 ± 0.270 %
RMS Δp    : 12.110 ± 0.330 %
Same top p: 75.200 ± 0.900 %
"""


@pytest.fixture(scope="module")
def agreement():
    sys.path.insert(0, str(FOLDER))
    try:
        specification = importlib.util.spec_from_file_location(
            "agreement_with_llama_perplexity", FOLDER / "agreement_with_llama_perplexity.py"
        )
        module = importlib.util.module_from_spec(specification)
        sys.modules[specification.name] = module
        specification.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_what_llama_perplexity_prints_is_read(agreement):
    assert agreement.parse(PRINTED) == agreement.Figures(13.579, 11.2233, 0.2421, 0.752)
    with pytest.raises(ValueError, match="no same_top"):
        agreement.parse(PRINTED.split("Same top p:", maxsplit=1)[0])


def test_tolerances(agreement):
    ours = agreement.parse(PRINTED)
    assert agreement.agree(ours, ours)
    assert agreement.agree(dataclasses.replace(ours, kl=ours.kl * 1.029), ours)
    assert not agreement.agree(dataclasses.replace(ours, kl=ours.kl * 1.031), ours)
    assert not agreement.agree(dataclasses.replace(ours, perplexity=ours.perplexity * 0.996), ours)
    assert not agreement.agree(
        dataclasses.replace(ours, reference_perplexity=ours.reference_perplexity * 1.004), ours
    )
