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
    assert "no battery" in meter.reason
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


def battery(root: Path, name: str = "BAT0", **files: object) -> Path:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True)
    for key, value in ({"type": "Battery", "status": "Discharging"} | files).items():
        (folder / key).write_text(f"{value}\n")
    return folder


def test_a_battery_counts_down_in_microwatt_hours(tmp_path):
    folder = battery(tmp_path, energy_now=50_000_000)
    meter = EnergyMeter(tmp_path)
    assert (meter.kind, meter.names, meter.reason, meter.cure) == ("battery", ["BAT0"], "", "")
    before = meter.read()
    (folder / "energy_now").write_text("49870000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(0.13 * 3600)
    # Readings of 50.00 and 49.87 Wh: steps of 10 mWh, 36 J each.
    assert meter.smallest == pytest.approx(360)


def test_a_battery_that_counts_charge(tmp_path):
    folder = battery(tmp_path, charge_now=4_000_000, voltage_now=12_000_000)
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    (folder / "charge_now").write_text("3999000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(1e-3 * 12 * 3600)


def test_batteries_are_summed_and_a_mouses_is_not(tmp_path):
    folders = [battery(tmp_path, f"BAT{i}", energy_now=1_000_000) for i in range(2)]
    battery(tmp_path, "hidpp_battery_0", scope="Device", energy_now=1_000_000)
    battery(tmp_path, "AC", type="Mains")
    meter = EnergyMeter(tmp_path)
    assert meter.names == ["BAT0", "BAT1"]
    before = meter.read()
    for folder in folders:
        (folder / "energy_now").write_text("999000\n")
    assert meter.joules(before, meter.read()) == pytest.approx(2 * 3.6)


def test_a_battery_on_mains_says_nothing(tmp_path):
    folder = battery(tmp_path, status="Charging", energy_now=1_000_000)
    meter = EnergyMeter(tmp_path)
    assert "no RAPL counters" in meter.reason
    assert "status is Charging" in meter.reason
    assert "on battery" in meter.cure
    (folder / "status").write_text("Discharging\n")
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    (folder / "status").write_text("Charging\n")
    assert before is not None
    assert meter.joules(before, meter.read()) is None


def test_a_battery_of_unknown_voltage(tmp_path):
    battery(tmp_path, charge_now=1)
    assert "voltage is not known" in EnergyMeter(tmp_path).reason


def test_packages_come_before_batteries(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    battery(tmp_path, energy_now=1_000_000)
    meter = EnergyMeter(tmp_path)
    assert (meter.kind, meter.smallest) == ("RAPL", 0)
