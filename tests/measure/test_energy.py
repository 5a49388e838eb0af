from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitqwen.measure.energy import EnergyMeter, Reading


def zone(root: Path, name: str, label: str, microjoules: int, wraps_at: int = 1000) -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text(f"{wraps_at}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 7)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    zone(tmp_path, "intel-rapl:2", "psys", 50)
    meter = EnergyMeter(tmp_path)
    assert meter.names == ["package-0", "package-1"]
    before = meter.read()
    for counter, value in ((first, 350), (second, 17), (core, 9999)):
        counter.write_text(str(value))
    assert meter.joules(before, meter.read()) == pytest.approx(260e-6)
    assert meter.reason == ""


def test_a_counter_that_starts_over(tmp_path):
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 990, wraps_at=1000)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    counter.write_text("15")
    assert meter.joules(before, meter.read()) == pytest.approx(25e-6)


def test_no_counters(tmp_path):
    meter = EnergyMeter(tmp_path)
    assert "no RAPL counters" in meter.reason
    assert meter.read() is None
    assert meter.joules(None, None) is None
    assert meter.joules(Reading((1,)), None) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_counters_for_root_only(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1).chmod(0)
    meter = EnergyMeter(tmp_path)
    assert "root" in meter.reason
    assert "chmod" in meter.cure


def test_counters_that_refuse(tmp_path, monkeypatch):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    read_text = Path.read_text

    def refuse(path: Path, *arguments: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = EnergyMeter(tmp_path)
    assert "root only" in meter.reason
    assert "chmod" in meter.cure


def test_a_counter_that_holds_no_number(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("?")
    assert "cannot be read" in EnergyMeter(tmp_path).reason
