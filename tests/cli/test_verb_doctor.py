from __future__ import annotations

import json

from bitqwen import _native


def test_json(bitqwen):
    result = bitqwen("doctor", "--json", "--self-test", "--offline")
    assert result.returncode == 0, result.stdout
    checks = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {"bitqwen", "CPU", "memory", "read bandwidth", "kernels", "compiler", "disk", "energy"} <= set(
        checks
    )
    assert "hub" not in checks
    assert _native.isa_name() in checks["kernels"]["found"]
    for isa in _native.usable_isas()[1:]:
        assert checks[f"self-test {isa}"]["status"] == "ok"
    assert all(check["status"] in {"ok", "warning"} for check in checks.values())


def test_text(bitqwen):
    result = bitqwen("doctor")
    assert result.returncode == 0
    assert "hub: offline mode is on" in result.stdout  # the tests' own environment
    assert "GB/s" in result.stdout
    assert "self-test" not in result.stdout


def test_an_impossible_instruction_set_is_broken(bitqwen, monkeypatch):
    monkeypatch.setenv("BITQWEN_ISA", "mmx")
    result = bitqwen("doctor", "--offline")
    assert result.returncode == 1
    assert "broken" in result.stdout
    assert "Unset BITQWEN_ISA" in result.stdout


def test_a_slow_choice_is_a_warning(bitqwen, monkeypatch):
    if len(_native.usable_isas()) == 1:
        return
    monkeypatch.setenv("BITQWEN_ISA", "scalar")
    (line,) = [line for line in bitqwen("doctor", "--offline").stdout.splitlines() if "kernels:" in line]
    assert line.startswith("warning")
