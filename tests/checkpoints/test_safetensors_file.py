from __future__ import annotations

import json
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from bitqwen.checkpoints.safetensors_file import SafetensorsFile
from bitqwen.errors import BitqwenError, ModelFileError, UnsupportedModelError
from helpers.tiny_checkpoint import DType, safetensors_bytes, write_safetensors


def entry(begin: int = 0, end: int = 16, shape: Any = (2, 2), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def write(tmp_path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes(header, data))
    return path


class TestReading:
    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    def test_values_are_those_that_the_safetensors_package_wrote(
        self, tmp_path: Path, dtype: type[np.generic]
    ) -> None:
        random = np.random.default_rng(1)
        arrays = {name: random.standard_normal((7, 5)).astype(dtype) for name in "abc"}
        arrays["scalar"] = np.array(2.5, dtype)
        arrays["empty"] = np.zeros((0, 3), dtype)
        save_file(arrays, tmp_path / "x.safetensors", {"format": "np"})
        file = SafetensorsFile(tmp_path / "x.safetensors")
        assert set(file.names()) == set(arrays)
        for name, array in arrays.items():
            assert file.shape(name) == array.shape
            assert file.dtype(name) == ("F32" if dtype is np.float32 else "F16")
            read = file.read(name)
            assert read.dtype == np.float32
            np.testing.assert_array_equal(read, array.astype(np.float32))

    def test_bfloat16_is_what_torch_makes_of_it(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save_torch

        values = torch.randn(300, 70).to(torch.bfloat16)
        values[0, :3] = torch.tensor([float("inf"), float("-inf"), -0.0])
        save_torch({"x": values}, tmp_path / "x.safetensors")
        read = SafetensorsFile(tmp_path / "x.safetensors").read("x")
        np.testing.assert_array_equal(read, values.float().numpy())
        assert np.signbit(read[0, 2])

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    def test_rows_are_those_of_the_whole(self, tmp_path: Path, dtype: DType) -> None:
        # Wide enough that a tensor is converted in several pieces.
        values = np.arange(40 * 65536, dtype=np.float32).reshape(40, 65536) % 256
        write_safetensors(tmp_path / "x.safetensors", {"before": values[0], "x": values}, dtype)
        file = SafetensorsFile(tmp_path / "x.safetensors")
        np.testing.assert_array_equal(file.read("x"), values)
        for begin, end in [(0, 1), (3, 21), (39, 40), (5, 5), (38, 99)]:
            np.testing.assert_array_equal(file.read("x", begin, end), values[begin:end])
        np.testing.assert_array_equal(file.read("x", 7), values[7:])

    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    def test_reading_takes_little_more_memory_than_the_result(self, tmp_path: Path, dtype: DType) -> None:
        values = np.ones((2048, 4096), np.float32)
        names = ("a", "b", "c")
        write_safetensors(tmp_path / "x.safetensors", dict.fromkeys(names, values), dtype)
        tracemalloc.start()
        try:
            file = SafetensorsFile(tmp_path / "x.safetensors")
            for name in names:
                file.read(name)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 1.2 * values.nbytes

    @pytest.mark.parametrize("dtype", ["F8_E4M3", "I64", "U8", "F4"])
    def test_another_type_is_listed_but_not_read(self, tmp_path: Path, dtype: str) -> None:
        count = {"I64": 2, "F4": 32}.get(dtype, 16)
        file = SafetensorsFile(write(tmp_path, {"x": entry(shape=[count], dtype=dtype)}))
        assert file.dtype("x") == dtype
        with pytest.raises(UnsupportedModelError, match=f"'x' has type {dtype}; F32, F16, BF16"):
            file.read("x")


class TestChangedFiles:
    def test_a_file_that_was_cut_since_is_an_error(self, tmp_path: Path) -> None:
        file = SafetensorsFile(write(tmp_path, {"x": entry()}))
        os.truncate(file.path, file.nbytes - 4)
        with pytest.raises(ModelFileError, match="was changed since it was opened"):
            file.read("x")

    def test_a_file_that_was_replaced_since_is_an_error(self, tmp_path: Path) -> None:
        file = SafetensorsFile(write(tmp_path, {"x": entry()}))
        other = tmp_path / "other"
        other.write_bytes(file.path.read_bytes())
        other.replace(file.path)
        with pytest.raises(ModelFileError, match="was changed since it was opened"):
            file.read("x")

    def test_a_file_that_was_removed_since_is_an_error(self, tmp_path: Path) -> None:
        file = SafetensorsFile(write(tmp_path, {"x": entry()}))
        file.path.unlink()
        with pytest.raises(ModelFileError, match="cannot read"):
            file.read("x")


class TestHostileFiles:
    def refused(self, path: Path, message: str) -> None:
        with pytest.raises(ModelFileError, match=message) as caught:
            SafetensorsFile(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("length", [9, 1 << 20, 100_000_001, 1 << 40, (1 << 64) - 1])
    def test_a_header_longer_than_the_file(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", length) + b"{}      ")
        self.refused(path, f"a header of {length} bytes in a file of 16")

    def test_every_cut_is_noticed(self, tmp_path: Path) -> None:
        whole = safetensors_bytes({"a": entry(), "b": entry(16, 24, [4], "F16")}, bytes(24))
        path = tmp_path / "x.safetensors"
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            self.refused(path, "is damaged")
        path.write_bytes(whole)
        assert SafetensorsFile(path).names() == ["a", "b"]

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            (b"not json", "not JSON"),
            (b"\xff\xfe{}", "not JSON"),
            (b"[" * 200_000, "not JSON"),
            (b'{"a": ' + b"9" * 5000 + b"}", "not JSON|not described"),
            (b'{"a": 1, "a": 2}', "a name occurs twice"),
            ([], "not a JSON object"),
            ({"x": 7}, "'x' is not described"),
            ({"x": {"dtype": "F32", "shape": [4]}}, "'x' is not described"),
            ({"x": entry() | {"data_offsets": [0, 8, 16]}}, "'x' is not described"),
            ({"x": entry(dtype=["F32"])}, "'x' is not described"),
            ({"x": entry() | {"shape": "22"}}, "'x' is not described"),
            ({"x": entry(shape=[1] * 9)}, "'x' is not described"),
            ({"x": entry(shape=[2**40] * 100_000)}, "'x' is not described"),
            ({"x": entry(shape=[-2, -2])}, "impossible shape or offset"),
            ({"x": entry(shape=[2.0, 2])}, "impossible shape or offset"),
            ({"x": entry(shape=[True, 4])}, "impossible shape or offset"),
            ({"x": entry(shape=[1 << 62, 4])}, "impossible shape or offset"),
            ({"x": entry(-16, 0)}, "impossible shape or offset"),
            ({"x": entry(0, 1 << 63)}, "impossible shape or offset"),
            ({"x": entry(0, 17)}, "lies at bytes 0 to 17 of 16"),
            ({"x": entry(16, 0)}, "lies at bytes 16 to 0 of 16"),
            ({"x": entry(shape=[2, 3])}, r"of F32 \[2, 3\] has 16 bytes"),
            ({"x": entry(shape=[2**31, 2**31, 2**31])}, "has 16 bytes"),
            ({"x": entry(dtype="BF16")}, r"of BF16 \[2, 2\] has 16 bytes"),
            ({"x": entry(0, 8, [2]), "y": entry(4, 12, [2])}, "'y' overlaps another"),
            ({"x": entry(0, 8, [2]), "y": entry(0, 8, [2])}, "'y' overlaps another"),
            ({"x": entry(4, 16, [3])}, "'x' follows bytes of no tensor"),
            ({"x": entry(0, 8, [2])}, "8 bytes belong to no tensor"),
            ({}, "16 bytes belong to no tensor"),
        ],
    )
    def test_what_the_format_does_not_allow(self, tmp_path: Path, header: Any, message: str) -> None:
        self.refused(write(tmp_path, header), message)

    def test_what_is_no_regular_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for name in ("pipe", "missing", "."):
            self.refused(tmp_path / name, "missing or not a file")

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_a_flipped_file_is_refused_or_read_in_full(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        header = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry(16, 24, [2, 2], "BF16")}
        content = bytearray(safetensors_bytes(header, bytes(range(24))))
        for _ in range(data.draw(st.integers(1, 3))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] = data.draw(st.integers(0, 255) | st.sampled_from(b'"[]{},:0123456789-.e'))
        path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
        path.write_bytes(content)
        try:
            file = SafetensorsFile(path)
            values = {name: file.read(name) for name in file.names()}
        except BitqwenError:
            return
        for name, array in values.items():
            assert array.shape == file.shape(name)

    def test_the_header_that_all_this_varies_is_a_good_one(self, tmp_path: Path) -> None:
        file = SafetensorsFile(write(tmp_path, {"x": entry()}, np.arange(4, dtype="<f4").tobytes()))
        assert file.read("x").tolist() == [[0, 1], [2, 3]]
        assert json.dumps(file.names()) == '["x"]'
