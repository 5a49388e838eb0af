"""Rotated matrices: quantised in other columns than their own, in which no column stands out.

Blocks of 128 columns take random signs and are Hadamard-transformed; so are the inputs that they meet, and
products stay what they were. Few levels suit the columns of such a matrix better (QuIP#, Tseng et al. 2024,
arXiv 2402.04396; QuaRot, Ashkboos et al. 2024, arXiv 2404.00456).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.gguf import FLOAT_TYPES

from .methods import Statistics
from .schemes import TensorPlan
from .vector_sweeps import is_vector_type

Matrix = npt.NDArray[np.float32]

BLOCK = 128  # columns that are mixed
_SEED = 0


@dataclass(frozen=True)
class Rotation:
    """How a file's matrices are rotated.

    Attributes:
        names: of the matrices, as Hugging Face calls them.
        signs: int8 [the widest one's columns], 1 or -1; narrower ones take the first.
    """

    names: frozenset[str]
    signs: npt.NDArray[np.int8]

    @classmethod
    def of(cls, plans: Mapping[str, TensorPlan], cols: Mapping[str, int]) -> Rotation:
        """Of every quantised matrix, in files that have vector codebooks.

        Other programs read those of mainline types alone, and would not know that they are rotated.

        Args:
            plans: how matrices are stored, by name.
            cols: their columns.
        """
        names = [
            name
            for name, plan in plans.items()
            if plan.tensor_type not in FLOAT_TYPES and cols[name] % BLOCK == 0
        ]
        if not any(is_vector_type(plan.tensor_type) for plan in plans.values()):
            names = []
        # Raw bits: numpy promises them, and not what its generators make of them.
        bits = np.random.PCG64(_SEED).random_raw(max((cols[name] for name in names), default=0))
        return cls(frozenset(names), np.where(bits >> np.uint64(63), 1, -1).astype(np.int8))

    @classmethod
    def none(cls) -> Rotation:
        """Of a file without rotated matrices."""
        return cls(frozenset(), np.zeros(0, np.int8))

    def of_matrix(self, name: str) -> Rotation | None:
        """This one if the matrix is rotated, by its Hugging Face name."""
        return self if name in self.names else None

    def turned(self, rows: Matrix, *, threads: int = 0) -> Matrix:
        """Rows of a matrix, or inputs, in rotated columns: float32 [rows, cols]."""
        return _native.rotate(np.ascontiguousarray(rows, np.float32), self.signs, threads=threads)

    def back(self, rows: Matrix, *, threads: int = 0) -> Matrix:
        """Rotated rows in their own columns: float32 [rows, cols]."""
        return _native.rotate(rows, self.signs, back=True, threads=threads)

    def statistics(self, known: Statistics, *, threads: int = 0) -> Statistics:
        """What is known of rotated inputs: their importance is the diagonal of their second moments.

        Where those are not known, columns are taken to be uncorrelated, and those of a block are all alike.
        """
        if known.moments is None:
            blocks = known.importance.reshape(-1, BLOCK).mean(axis=1, dtype=np.float32)
            return Statistics(np.repeat(blocks, BLOCK), None, known.samples)
        half = self.turned(known.moments, threads=threads)
        moments = self.turned(half.T, threads=threads)
        return Statistics(np.diag(moments).copy(), moments, known.samples)
