"""What the tuner found on this machine, kept in bitqwen's cache and used by every model that is opened.

A file belongs to one CPU, instruction set and number of threads. It changes speed alone: the engine gives
the same bits by any plan. One that does not fit, is damaged or comes from another version is ignored.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bitqwen import _native
from bitqwen.errors import BitqwenError
from bitqwen.files import atomic_file

from .products import ProductKey

VERSION = 1
BATCHES = ("1", "2-4", "prefill")
_LONGEST = 4 << 20  # bytes: a thousand products
_ENTRY_LIMIT = 4096
_LIBRARY = re.compile(r"lut-[0-9a-f]{20}\.so")
_CPU_FIELDS = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How a product is computed.

    Attributes:
        kernels: an instruction set's name; beside generated kernels, what is used where those are not.
        rows: that a thread takes at a time; 0: the default.
        tile: columns of a tile of activations; 0: as many as the kernels take.
        library: file of generated kernels in the cache; empty: built-in ones.
    """

    kernels: str
    rows: int
    tile: int
    library: str = ""

    def __str__(self) -> str:
        tile = f", tiles of {self.tile}" if self.tile > 1 else ""
        return f"{'generated' if self.library else self.kernels}, {self.rows} rows{tile}"

    def native(self) -> tuple[str, int, int, str]:
        """As the engine takes it."""
        return (self.kernels, self.rows, self.tile, str(library_path(self.library)) if self.library else "")


@dataclass(frozen=True)
class Timing:
    """A choice and the seconds that a product took by it: the best of its rounds."""

    choice: Choice
    seconds: float


@dataclass(frozen=True)
class Entry:
    """What was found for one product and kind of batch.

    Attributes:
        key: the product.
        batch: one of :data:`BATCHES`.
        columns: the batch that was timed.
        timed_rows: rows that were timed; fewer than the product's own where arithmetic is the limit.
        bytes: packed weights that the timed product reads.
        winner: what the engine takes.
        default: what it would take without a plan.
        loser: the best of all others than the winner; None if there was no other.
        peak: the most that the machine did in the same run: bytes a second read, for "prefill" int8
            multiply-adds a second; 0 where it has no such instruction.
    """

    key: ProductKey
    batch: str
    columns: int
    timed_rows: int
    bytes: int
    winner: Timing
    default: Timing
    loser: Timing | None
    peak: float


@dataclass(frozen=True)
class Place:
    """Whom a plan belongs to: a CPU, the instruction set in use, and a number of threads."""

    cpu: str
    isa: str
    threads: int

    @property
    def path(self) -> Path:
        """The plan's file."""
        from bitqwen.checkpoints.cache import cache_dir

        identity = hashlib.sha256(json.dumps([self.cpu, self.isa, self.threads]).encode()).hexdigest()
        return cache_dir() / "tuning" / f"{self.isa}-{self.threads}-{identity[:12]}.json"


def here(threads: int | None = None) -> Place:
    """This machine with a number of threads; by default one a core, as the engine takes."""
    return Place(cpu(), _native.isa_name(), threads or _native.available_cores())


def cpu(root: Path = Path("/")) -> str:
    """The processor, as exactly as the system tells; ``root`` is another folder in tests."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), re.sub(r"\s+", " ", value.strip()))
    return ", ".join(f"{name} {fields[name]}" for name in _CPU_FIELDS if name in fields) or platform.machine()


def enabled() -> bool:
    """Whether models use plans: BITQWEN_TUNING=0 says no."""
    return os.environ.get("BITQWEN_TUNING", "") != "0"


def load(place: Place) -> dict[tuple[ProductKey, str], Entry]:
    """What was found at a place; empty, with one sentence in the log, where the file cannot be used."""
    path = place.path
    try:
        return _entries(_document(path), place)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError, BitqwenError) as error:
        reason = error.message if isinstance(error, BitqwenError) else str(error) or type(error).__name__
        logger.warning(
            "The tuning file %s is ignored (%s); bitqwen kernels tune writes a new one.", path, reason
        )
        return {}


def save(place: Place, entries: Iterable[Entry]) -> Path:
    """Adds to what is known of a place; the file appears whole.

    Raises:
        OSError: it cannot be written.
    """
    known = load(place) | {(entry.key, entry.batch): entry for entry in entries}
    document = _head(place) | {"entries": [asdict(entry) for entry in known.values()]}
    path = place.path
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(document, indent=1).encode() + b"\n")
    return path


def rows(entries: Iterable[Entry]) -> list[_native.PlanRow]:
    """A plan as the engine takes it, without generated kernels that cannot be used any more."""
    usable: dict[str, bool] = {}
    found = []
    for entry in entries:
        choice = entry.winner.choice
        if choice.library:
            if choice.library not in usable:
                usable[choice.library] = _loads(library_path(choice.library))
            if not usable[choice.library]:
                continue
        found.append((*entry.key, entry.batch, *choice.native()))
    return found


def library_path(name: str) -> Path:
    """Where a library of generated kernels lies; its name is a hash of its source, flags and compiler."""
    from .compiler import library_folder

    return library_folder() / name


def _loads(path: Path) -> bool:
    try:
        _native.load_generated(str(path))
    except BitqwenError as error:
        logger.warning("Generated kernels are not used: %s", error.message)
        return False
    return True


def _head(place: Place) -> dict[str, Any]:
    from bitqwen import __version__

    return {"version": VERSION, "bitqwen": __version__, **asdict(place)}


def _document(path: Path) -> Any:
    with path.open("rb") as file:
        data = file.read(_LONGEST + 1)
    if len(data) > _LONGEST:
        raise ValueError("it is too long")
    return json.loads(data)


def _entries(document: Any, place: Place) -> dict[tuple[ProductKey, str], Entry]:
    """The entries of a file's document, each checked.

    Raises:
        ValueError, TypeError, KeyError: it is not what this version writes for this place.
        UsageError: it names what this machine cannot run.
    """
    if not isinstance(document, dict):
        raise TypeError("it holds no object")
    for name, value in _head(place).items():
        if document.get(name) != value:
            raise ValueError(f"it was written for {name} {document.get(name)!r}, this is {value!r}")
    listed = document["entries"]
    if not isinstance(listed, list) or len(listed) > _ENTRY_LIMIT:
        raise ValueError("its entries are no list, or too many")
    entries = [_entry(item) for item in listed]
    built_in = [replace(entry.winner.choice, library="").native() for entry in entries]
    _native.check_plan(
        [(*entry.key, entry.batch, *choice) for entry, choice in zip(entries, built_in, strict=True)]
    )
    return {(entry.key, entry.batch): entry for entry in entries}


def _entry(item: Mapping[str, Any]) -> Entry:
    name, key_rows, cols = item["key"]
    if item["batch"] not in BATCHES:
        raise ValueError(f"batch {item['batch']!r} is not known")
    return Entry(
        ProductKey(_text(name), _count(key_rows), _count(cols)),
        item["batch"],
        _count(item["columns"]),
        _count(item["timed_rows"]),
        _count(item["bytes"]),
        _timing(item["winner"]),
        _timing(item["default"]),
        None if item["loser"] is None else _timing(item["loser"]),
        _number(item["peak"]),
    )


def _timing(item: Mapping[str, Any]) -> Timing:
    choice = item["choice"]
    seconds = _number(item["seconds"])
    if seconds <= 0:
        raise ValueError("a time is not positive")
    library = _text(choice["library"])
    if library and not _LIBRARY.fullmatch(library):
        raise ValueError(f"{library!r} is no name of a library")
    chosen = Choice(_text(choice["kernels"]), _count(choice["rows"]), _count(choice["tile"]), library)
    return Timing(chosen, seconds)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 100:
        raise ValueError(f"{str(value)[:40]!r} is no name")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 48:
        raise ValueError(f"{str(value)[:40]!r} is no count")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1e30:
        raise ValueError(f"{str(value)[:40]!r} is no measurement")
    return float(value)
