from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from bitqwen import _native
from bitqwen.kernels import compiler
from bitqwen.measure import health
from bitqwen.measure.machine import Cache, Machine

Usage = namedtuple("Usage", "total used free")


def found(**changes):
    plain = {
        "cpu": "A CPU",
        "logical_cpus": 8,
        "physical_cores": 4,
        "usable_cpus": 8,
        "quota": None,
        "performance_cpus": [],
        "efficiency_cpus": [],
        "isa": [],
        "caches": [Cache(1, "data", 32 << 10, 4, 2), Cache(3, "unified", 32 << 20, 1, 8)],
        "numa_nodes": [[0]],
        "memory": 8 << 30,
        "system": "Linux",
        "virtual": False,
    }
    return {check.name: check for check in health._cpu(Machine(**plain | changes))}


def test_a_plain_machine_has_nothing_to_warn_of():
    checks = found()
    assert {check.status for check in checks.values()} == {"ok"} or "clock" in checks
    assert checks["caches"].found == "L1 data 32 KiB x 4, L3 32 MiB"


def test_limits_kinds_and_nodes_are_told():
    checks = found(quota=1.5, performance_cpus=[0, 1], efficiency_cpus=[2, 3], numa_nodes=[[0], [1]])
    assert "1.5 of 8" in checks["CPUs allowed"].found
    assert "2 of performance" in checks["CPU"].found
    assert "numactl" in checks["NUMA"].cure


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(compiler, "find", lambda: None)
    check = health._compiler()
    assert check.status == "warning"
    assert "ziglang" in check.cure


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    assert health._disk().status == "warning"


@pytest.mark.parametrize("answers", [True, False])
def test_the_hub(monkeypatch, answers):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("bitqwen.checkpoints.hub.reachable", lambda _: answers)
    assert health._hub().status == ("ok" if answers else "warning")


def test_a_wrong_kernel_is_broken(monkeypatch):
    results = [("avx2", "Q4_K", 16, 0), ("avx2", "Q6_K", 16, 3), ("avx512", "Q4_K", 16, 0)]
    monkeypatch.setattr(_native, "kernel_self_test", lambda: results)
    first, second = health._self_test()
    assert (first.status, second.status) == ("broken", "ok")
    assert "Q6_K (3 of 16)" in first.found
    assert "Q4_K" not in first.found
