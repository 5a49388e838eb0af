"""Generated kernels, compiled and loaded; and the proof that they compute what they should."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.errors import ModelFileError

from .generator import ABI

Int8 = npt.NDArray[np.int8]
_PATTERNS = ("random", "extreme", "sparse")


@dataclass(frozen=True)
class Facts:
    """One kernel of a library.

    Its shape and tile; the columns that share an activation scale (``cell``) and a weight scale (``unit``);
    bytes of a packed tile and of the tables.
    """

    rows: int
    cols: int
    tile_rows: int
    block: int
    lanes: int
    cell: int
    unit: int
    tile_bytes: int
    table_bytes: int


class Library:
    """A shared library of generated kernels.

    Raises:
        ModelFileError: the file is no such library, or of another version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
            abi = int(self._library.bitqwen_lut_abi())
        except (OSError, AttributeError) as error:
            raise ModelFileError(f"{path} is no library of generated kernels: {error}") from error
        if abi != ABI:
            raise ModelFileError(f"{path} has interface {abi}; this version of bitqwen needs {ABI}.")
        self.kernels = [self._describe(i) for i in range(int(self._library.bitqwen_lut_count()))]

    def _describe(self, i: int) -> Facts:
        facts = (ctypes.c_int64 * 9)()
        self._library.bitqwen_lut_describe(ctypes.c_int32(i), facts)
        return Facts(*facts)

    def multiply(self, i: int, weights: Int8, x: Int8) -> npt.NDArray[np.float32]:
        """``weights @ x`` by kernel ``i`` with all scales 1, where its floats are integers.

        Args:
            i: the kernel's number.
            weights: [rows, cols] in {-1, 0, 1}, rows a multiple of a tile's.
            x: [cols].

        Raises:
            ValueError: other shapes.
        """
        facts = self.kernels[i]
        rows, cols = weights.shape
        if cols != facts.cols or rows % facts.tile_rows or x.shape != (cols,):
            raise ValueError(
                f"kernel {i} multiplies {facts.rows} x {facts.cols} in tiles of {facts.tile_rows}"
            )
        weights, x = np.ascontiguousarray(weights), np.ascontiguousarray(x)
        tables = np.empty(facts.table_bytes, np.int8)
        packed = np.empty(facts.tile_bytes, np.uint8)
        of_weights = np.ones((facts.tile_rows, cols // facts.unit), np.float16)
        of_x = np.ones(cols // facts.cell, np.float32)
        y = np.empty(rows, np.float32)
        number = ctypes.c_int32(i)
        vectors = ctypes.c_int64(facts.tile_rows // facts.lanes)
        self._library.bitqwen_lut_prepare(number, _pointer(x), _pointer(tables))
        for begin in range(0, rows, facts.tile_rows):
            tile = weights[begin : begin + facts.tile_rows]
            self._library.bitqwen_lut_pack_tile(
                number, _pointer(tile), _pointer(of_weights), _pointer(packed)
            )
            out = y[begin : begin + facts.tile_rows]
            self._library.bitqwen_lut_multiply_tile(
                number,
                _pointer(packed),
                _pointer(tables),
                _pointer(of_x),
                _pointer(out),
                ctypes.c_int64(0),
                vectors,
            )
        return y

    def wrong(self, seed: int = 0, tiles: int = 2) -> list[Facts]:
        """The kernels whose integers differ from a plain product's, on ``tiles`` tiles of each."""
        random = np.random.default_rng(seed)
        found = []
        for i, facts in enumerate(self.kernels):
            rows = facts.tile_rows * min(tiles, facts.rows // facts.tile_rows)
            for pattern in _PATTERNS:
                weights, x = _sample(random, pattern, rows, facts.cols)
                expected = weights.astype(np.int32) @ x.astype(np.int32)
                if not np.array_equal(self.multiply(i, weights, x), expected):
                    found.append(facts)
                    break
        return found


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _sample(random: np.random.Generator, pattern: str, rows: int, cols: int) -> tuple[Int8, Int8]:
    """Weights [rows, cols] and activations [cols]; "extreme" makes every partial sum as large as it gets."""
    weights = random.integers(-1, 2, (rows, cols), np.int8)
    x = random.integers(-127, 128, cols, np.int8)
    if pattern == "extreme":
        x = random.choice(np.array([-127, 127], np.int8), cols)
        weights[: rows // 2] = np.sign(x)
        weights[rows // 2 :] = -np.sign(x)
    elif pattern == "sparse":
        weights *= random.random((rows, cols)) < 0.1
    return weights, x
