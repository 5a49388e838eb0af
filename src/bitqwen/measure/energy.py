"""Energy from the machine's own counters, where a process may read them; else the reason, never a guess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_POWERCAP = Path("sys/class/powercap")
# A program that reads these counters finely can spy on others (CVE-2020-8694): only root may, by default.
_ALLOW = "Allow it until the next boot with: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"


@dataclass(frozen=True)
class _Counter:
    """One package's counter: microjoules, starting over after ``wraps_at``."""

    path: Path
    name: str
    wraps_at: int

    def read(self) -> int:
        return int(self.path.read_text())


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, microjoules each."""

    values: tuple[int, ...]


class EnergyMeter:
    """The energy of all CPU packages together, memory and other programs' work included.

    Attributes:
        reason: why nothing can be read here; empty if it can.
        cure: what the user can do about that, if anything.
        names: of the counters that are read.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.reason, self.cure = "", ""
        self._counters: list[_Counter] = []
        folder = root / _POWERCAP
        # Packages only: cores, graphics and memory are parts of these, or listed below them.
        zones = [zone for zone in sorted(folder.glob("*:*")) if zone.name.count(":") == 1]
        if not zones:
            self.reason = "no RAPL counters under /sys/class/powercap: a virtual machine, or another CPU"
            return
        for zone in zones:
            try:
                name = (zone / "name").read_text().strip()
                counter = _Counter(zone / "energy_uj", name, int((zone / "max_energy_range_uj").read_text()))
                if name.startswith("package"):
                    counter.read()
                    self._counters.append(counter)
            except PermissionError:
                self.reason, self.cure = f"{zone / 'energy_uj'} may be read by root only", _ALLOW
                self._counters = []
                return
            except (OSError, ValueError) as error:
                self.reason = f"{zone} cannot be read: {error}"
        if not self._counters:
            self.reason = self.reason or "RAPL counts no CPU package here"
        else:
            self.reason = ""

    @property
    def names(self) -> list[str]:
        """Names of the counters that are read."""
        return [counter.name for counter in self._counters]

    def read(self) -> Reading | None:
        """The counters now; None where nothing can be read."""
        if not self._counters:
            return None
        try:
            return Reading(tuple(counter.read() for counter in self._counters))
        except (OSError, ValueError):
            return None

    def joules(self, start: Reading | None, end: Reading | None) -> float | None:
        """Joules between two readings no more than one wrap apart (a minute or more); None without both."""
        if start is None or end is None:
            return None
        total = 0
        for counter, before, after in zip(self._counters, start.values, end.values, strict=True):
            total += after - before if after >= before else after - before + counter.wraps_at
        return total / 1e6
