"""Energy from the machine's own counters, where a process may read them; else the reason, never a guess."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_POWERCAP = Path("sys/class/powercap")
_POWER_SUPPLY = Path("sys/class/power_supply")
# A program that reads these counters finely can spy on others (CVE-2020-8694): only root may, by default.
_ALLOW = "Allow it until the next boot with: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
_UNPLUG = "Run on battery: its counter says what the whole machine takes."
_JOULES_PER_MICROWATT_HOUR = 3600e-6
# A difference of fewer steps of its counter is more rounding than energy.
_STEPS = 10


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, in their own units."""

    values: tuple[int, ...]


class _Source(Protocol):
    """Something that counts energy."""

    @property
    def name(self) -> str:
        """The system's name of it."""
        ...

    def read(self) -> int:
        """The counter now; raises OSError or ValueError where it cannot be read."""
        ...

    def joules(self, before: int, after: int) -> float:
        """What was used between two readings."""
        ...


@dataclass(frozen=True)
class _Package:
    """One CPU package's RAPL counter: microjoules, starting over after ``wraps_at``."""

    path: Path
    name: str
    wraps_at: int

    def read(self) -> int:
        return int(self.path.read_text())

    def joules(self, before: int, after: int) -> float:
        return (after - before if after >= before else after - before + self.wraps_at) / 1e6


@dataclass(frozen=True)
class _Battery:
    """What is left in a battery: microwatt-hours, or microampere-hours at a voltage; it counts down."""

    folder: Path
    name: str

    @property
    def microvolts(self) -> int | None:
        """The voltage that turns charge into energy; None where energy itself is counted."""
        if (self.folder / "energy_now").exists():
            return None
        for name in ("voltage_now", "voltage_min_design"):
            if (self.folder / name).exists():
                return int((self.folder / name).read_text())
        raise ValueError("it counts charge, and its voltage is not known")

    def read(self) -> int:
        status = (self.folder / "status").read_text().strip()
        if status != "Discharging":
            raise ValueError(f"its status is {status}")
        volts = self.microvolts
        return int((self.folder / ("energy_now" if volts is None else "charge_now")).read_text())

    def joules(self, before: int, after: int) -> float:
        volts = self.microvolts
        return (before - after) * (1 if volts is None else volts / 1e6) * _JOULES_PER_MICROWATT_HOUR


class EnergyMeter:
    """Energy of all CPU packages, or else of the whole machine on battery; other programs' work included.

    Attributes:
        reason: why nothing can be read here; empty if it can.
        cure: what the user can do about that, if anything.
        kind: "RAPL" or "battery"; empty if nothing can be read.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.cure, self.kind = "", ""
        self._sources: list[_Source] = []
        self._steps: list[int] = []
        self.reason = self._find_packages(root / _POWERCAP)
        if self.reason:
            reason = self._find_batteries(root / _POWER_SUPPLY)
            self.reason = f"{self.reason}; {reason}" if reason else ""
            self.cure = self.cure if self.reason else ""

    def _find_packages(self, folder: Path) -> str:
        """Takes the CPU packages' counters; otherwise says why not."""
        # Packages only: cores, graphics and memory are parts of these, or listed below them.
        zones = [zone for zone in sorted(folder.glob("*:*")) if zone.name.count(":") == 1]
        if not zones:
            return "no RAPL counters under /sys/class/powercap (a virtual machine, or another CPU)"
        reason = ""
        packages = []
        for zone in zones:
            try:
                name = (zone / "name").read_text().strip()
                package = _Package(zone / "energy_uj", name, int((zone / "max_energy_range_uj").read_text()))
                if name.startswith("package"):
                    package.read()
                    packages.append(package)
            except PermissionError:
                self.cure = _ALLOW
                return f"{zone / 'energy_uj'} may be read by root only"
            except (OSError, ValueError) as error:
                reason = f"{zone} cannot be read: {error}"
        if not packages:
            return reason or "RAPL counts no CPU package here"
        self._take("RAPL", packages)
        return ""

    def _find_batteries(self, folder: Path) -> str:
        """Takes the machine's batteries if it runs on them; otherwise says why not."""
        reason = "no battery under /sys/class/power_supply"
        batteries = []
        for supply in sorted(folder.glob("*")):
            try:
                # A mouse's or a telephone's battery has the scope Device.
                scope = supply / "scope"
                if (supply / "type").read_text().strip() != "Battery" or (
                    scope.exists() and scope.read_text().strip() == "Device"
                ):
                    continue
                battery = _Battery(supply, supply.name)
                battery.read()
                batteries.append(battery)
            except (OSError, ValueError) as error:
                reason = f"the battery {supply.name} says nothing: {error}"
                self.cure = self.cure or _UNPLUG
        if not batteries:
            return reason
        self._take("battery", batteries)
        return ""

    def _take(self, kind: str, sources: list[_Package] | list[_Battery]) -> None:
        self.kind, self._sources, self._steps = kind, list(sources), [0] * len(sources)

    @property
    def names(self) -> list[str]:
        """Names of the counters that are read."""
        return [source.name for source in self._sources]

    @property
    def smallest(self) -> float:
        """Joules below which a sum of differences says nothing, as far as the readings so far tell.

        A counter's step is the greatest common divisor of all that was read. RAPL's is far below a token's
        energy; a battery's is often some 36 joules.
        """
        if self.kind != "battery":
            return 0.0
        pairs = zip(self._sources, self._steps, strict=True)
        return _STEPS * sum(source.joules(step, 0) for source, step in pairs)

    def read(self) -> Reading | None:
        """The counters now; None where nothing can be read."""
        if not self._sources:
            return None
        try:
            values = tuple(source.read() for source in self._sources)
        except (OSError, ValueError):
            return None
        self._steps = [math.gcd(step, value) for step, value in zip(self._steps, values, strict=True)]
        return Reading(values)

    def joules(self, start: Reading | None, end: Reading | None) -> float | None:
        """Joules between two readings no more than one wrap apart (a minute or more); None without both."""
        if start is None or end is None:
            return None
        counted = zip(self._sources, start.values, end.values, strict=True)
        try:
            return sum(source.joules(before, after) for source, before, after in counted)
        except (OSError, ValueError):
            return None
