"""What a conversion tells while it runs and when it is done."""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bitqwen.models.specification import Role


@dataclass(frozen=True)
class TensorReport:
    """One tensor as it was written.

    ``relative_error`` is the squared error as a share of the tensor's energy; ``seconds`` covers
    reading, encoding and writing. ``lost_outputs`` is the share of the outputs' energy that is lost on the
    calibration text, where there was one.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    source_type: str
    tensor_type: str
    nbytes: int
    error: float
    energy: float
    seconds: float
    lost_outputs: float | None = None

    @property
    def weights(self) -> int:
        """How many values it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def relative_error(self) -> float:
        """Squared error as a share of the tensor's energy."""
        return self.error / self.energy if self.energy else 0.0


class Progress(NamedTuple):
    """A tensor is about to be converted, or another piece of a large one.

    Attributes:
        tensor: its name, or what is done before the first one; empty at the end.
        done: bytes converted so far, as float32.
        total: bytes to convert in all.
        finished: when a tensor begins and at the end, the one before, as it was written.
    """

    tensor: str
    done: int
    total: int
    finished: TensorReport | None = None


ProgressCallback = Callable[[Progress], None]


@dataclass
class ConversionReport:
    """A finished conversion.

    Attributes:
        path: the file.
        scheme: the scheme's name.
        tensors: what was written, in the file's order.
        warnings: sentences for the user.
        seconds: from opening the source to the synced file.
        nbytes: the file's size.
        peak_rss: the most memory that this process has had resident in its life, in bytes.
    """

    path: Path
    scheme: str
    tensors: list[TensorReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    nbytes: int = 0
    peak_rss: int = 0

    @property
    def last(self) -> TensorReport | None:
        """The tensor that was written last."""
        return self.tensors[-1] if self.tensors else None

    def bits_per_weight(self, *roles: Role) -> float:
        """Bits per weight of the tensors with these roles (all, if none is given), from file bytes."""
        chosen = [t for t in self.tensors if not roles or t.role in roles]
        weights = sum(t.weights for t in chosen)
        return 8 * sum(t.nbytes for t in chosen) / weights if weights else 0.0

    @property
    def relative_error(self) -> float:
        """Squared error of all block matrices as a share of their energy."""
        chosen = [t for t in self.tensors if t.role == "matrix"]
        energy = sum(t.energy for t in chosen)
        return sum(t.error for t in chosen) / energy if energy else 0.0

    @property
    def lost_outputs(self) -> float | None:
        """Mean share of the matrices' outputs' energy that is lost on the calibration text, if known."""
        known = [t.lost_outputs for t in self.tensors if t.lost_outputs is not None]
        return sum(known) / len(known) if known else None

    def type_counts(self) -> dict[str, int]:
        """How many tensors were written in each type."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            counts[tensor.tensor_type] = counts.get(tensor.tensor_type, 0) + 1
        return counts


def peak_rss() -> int:
    """The most memory that this process has had resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
