from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def projection(script):
    return script("projection")


def operation(name, seconds, barriers, calls=1):
    return {"name": name, "calls": calls, "seconds": seconds, "barriers": barriers}


def row(kind, tokens, speed, operations):
    return {
        "engine": "bitqwen",
        "peer": False,
        "model": "m.gguf",
        "threads": 2,
        "kind": kind,
        "test": f"{kind}{tokens}",
        "tokens": tokens,
        "samples": [speed, speed, speed],
        "bytes_per_token": 400e6,
        "weight_bytes": 400e6,
        "macs_per_token": 1.5e9,
        "profile": {"operations": operations},
    }


# A token of 10 ms: 1 ms alone, 100 barriers; read at 80 GB/s at most.
DECODE = row("tg", 32, 100.0, [operation("embedding", 0.032, 0, calls=32), operation("down", 0.288, 3200)])
PREFILL = row("pp", 512, 512.0, [operation("embedding", 0.1, 0), operation("down", 0.9, 200)])
REPORT = {
    "machine": {"cpu": "A CPU", "date": "2026-11-25"},
    "read_gb_per_second": {"1": [40.0, 50.0, 60.0], "2": [80.0, 80.0, 70.0]},
    "int8_gmac_per_second": {"1": [500.0], "2": [1000.0]},
    "rows": [DECODE, PREFILL, {**DECODE, "engine": "another", "peer": True}, {**DECODE, "threads": 1}],
}


def test_decode(projection):
    step = projection.measured(REPORT, DECODE)
    assert (step.seconds, step.barriers, step.tokens) == (pytest.approx(0.010), 100, 1)
    assert step.alone == pytest.approx(0.001)
    # Barriers of 2 us a thread: 0.4 ms of the 10; 400 MB in 8.6 ms are 46.5 GB/s of 80.
    assert step.efficiency(2e-6) == pytest.approx(400e6 / 0.0086 / 80e9)
    # 8 cores: the same share of 90 GB/s, the millisecond alone, barriers of 16 us.
    shared = 400e6 / (400e6 / 0.0086 / 80e9 * 90e9)
    assert step.on(8, 90e9, 90e9, 2e-6) == pytest.approx(1 / (shared + 0.001 + 100 * 16e-6))


def test_the_measured_machine_projects_onto_itself(projection):
    for each in (DECODE, PREFILL):
        step = projection.measured(REPORT, each)
        assert step.on(2, step.rate, 80e9, 1e-6) == pytest.approx(each["samples"][0])


def test_prefill_is_bound_by_arithmetic_until_weights_take_longer(projection):
    step = projection.measured(REPORT, PREFILL)
    assert step.tokens == 512
    assert step.work == pytest.approx(512 * 1.5e9)
    fast = step.on(64, 1e30, 40e9, 0.0)
    assert fast == pytest.approx(512 / (400e6 / 40e9 + 0.1))


def test_bandwidth_is_the_channels_or_the_cores_whichever_is_less(projection):
    few = projection.Machine.parse("2:12:40")
    many = projection.Machine.parse("64:1:40")
    found = projection.project(REPORT, [few, many], 0.5, 0.0)
    assert [(model, test, machine.cores) for model, test, machine, _ in found] == [
        ("m.gguf", "tg32", 2),
        ("m.gguf", "tg32", 64),
        ("m.gguf", "pp512", 2),
        ("m.gguf", "pp512", 64),
    ]
    efficiency = 400e6 / 0.009 / 80e9
    assert found[0][3] == pytest.approx(1 / (400e6 / (efficiency * 2 * 50e9) + 0.001))
    assert found[1][3] == pytest.approx(1 / (400e6 / (efficiency * 20e9) + 0.001))


def test_a_report_without_profile_is_refused(projection):
    with pytest.raises(SystemExit, match="--profile"):
        projection.measured(REPORT, {**DECODE, "profile": None})


def test_machines_that_cannot_be(projection):
    for text in ("8", "8:2", "8:2:x", "0:2:40", "8:2:-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=text):
            projection.Machine.parse(text)


def test_the_cost_of_a_barrier_is_that_of_the_most_threads_with_cores(projection, tmp_path):
    assert projection.barrier_seconds(None) == projection.BARRIER_US * 1e-6
    path = tmp_path / "barriers.json"
    loops = [
        {"threads": 1, "joined_us": [0.01, 0.01]},
        {"threads": 4, "joined_us": [0.5, 0.8]},
        {"threads": 8, "working_us": [1.0, 2.0]},
    ]
    path.write_text(json.dumps({"results": {"loops": loops}}))
    assert projection.barrier_seconds(path) == pytest.approx(0.2e-6)
    path.write_text(json.dumps({"results": {"loops": loops[:1]}}))
    with pytest.raises(SystemExit, match="no loops"):
        projection.barrier_seconds(path)


def test_it_says_that_it_is_a_projection(projection, tmp_path, capsys):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(REPORT))
    projection.main([str(path)])
    printed = capsys.readouterr().out
    assert "nothing here was measured" in printed
    assert "| m.gguf | tg32 | 64 | 12 x 38.4 GB/s |" in printed
