from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def over_f16(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("over_f16")
    sys.modules.pop("over_f16", None)


def row(model, samples, *, engine="bitqwen", peer=False, joules=None, quality=None, threads=2):
    return {
        "model": f"{model}.gguf",
        "engine": engine,
        "version": "1.2",
        "model_bytes": 2_500_000_000,
        "test": "tg8",
        "threads": threads,
        "tokens_per_second": sum(samples) / len(samples),
        "sigma": 1.0,
        "samples": samples,
        "peer": peer,
        "joules_per_token": joules,
        "energy_reason": None if joules else "no counter",
        "quality": quality,
        "bits_per_weight": 16.002 if model == "f16" else 4.5,
    }


def document(*rows):
    machine = {
        "cpu": "A CPU",
        "isa": ["avx2"],
        "cores": 2,
        "memory_gib": 8,
        "system": "Linux",
        "date": "today",
    }
    return {"machine": machine, "rows": list(rows)}


def test_ratios_are_taken_round_by_round(over_f16):
    receipt = {"prose": {"kl": 0.0512}, "code": {"kl": 0.0249}}
    lines = over_f16.table(
        document(
            row("w4", [20.0, 30.0, 50.0], quality=receipt),
            row("f16", [10.0, 10.0, 10.0], peer=True),
            row("f16", [5.0, 10.0, 25.0], peer=True, engine="llama-cpp-python"),
            row("w4", [20.0, 20.0, 20.0], peer=True, engine="llama-cpp-python"),
            row("f16", [1.0, 1.0, 1.0], peer=True, threads=1),
        )
    )
    assert lines[0].startswith("A CPU")
    assert "| over f16 | over f16, llama-cpp-python 1.2 | over a peer on the same file |" in lines[2]
    assert lines[4] == (
        "| tg8 | w4 | 2.50 | 33.3 ± 1.0 | **3.00** (2.00 to 5.00) | **3.00** (2.00 to 4.00) "
        "| **1.50** (1.00 to 2.50) | not readable | prose 0.0512, code 0.0249 |"
    )
    assert lines[5] == "| tg8 | f16 | 2.50 | 10.0 ± 1.0 |  |  |  |  |  |"
    assert lines[-1] == "no counter"


def test_energy_is_given_where_both_were_read(over_f16):
    lines = over_f16.table(document(row("w2", [2.0], joules=0.5), row("f16", [1.0], peer=True, joules=2.0)))
    assert "| 0.25 |" in lines[4]


def test_a_report_without_peers_is_refused(over_f16):
    with pytest.raises(SystemExit, match="--against"):
        over_f16.table(document(row("w2", [1.0])))
