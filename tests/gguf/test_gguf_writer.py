"""Writing: read back by ourselves and by the gguf package; and nothing left behind when it goes wrong."""

from __future__ import annotations

import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gguf_bytes import unprivileged
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from bitqwen.errors import ModelFileError, ResourceError, UnsupportedModelError, UsageError
from bitqwen.gguf import (
    GGUFFile,
    GGUFWriter,
    TensorType,
    ValueType,
    check_disk_space,
    codebook_shape,
    tensor_bytes,
    type_info,
)


def write(
    path: Path, metadata: dict[str, Any], tensors: dict[str, tuple[TensorType, tuple[int, ...], bytes]]
) -> None:
    with GGUFWriter(path) as writer:
        writer.add_metadata(metadata)
        for name, (tensor_type, shape, _) in tensors.items():
            writer.add_tensor(name, shape, tensor_type)
        writer.begin()
        for name, (_, _, data) in tensors.items():
            writer.write(name, data)
        writer.finish()


def package_metadata(path: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


# -- what is written ---------------------------------------------------------------------------------------


def test_the_gguf_package_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors = {}
    for tensor_type in TensorType:
        # The package refuses a file with a type that it does not know.
        if tensor_type == TensorType.Q2_0 or codebook_shape(tensor_type):
            continue
        shape = (3, 2 * type_info(tensor_type).block_size)
        data = rng.integers(0, 256, tensor_bytes(tensor_type, shape), dtype=np.uint8).tobytes()
        tensors[f"{tensor_type.name}.weight"] = (tensor_type, shape, data)
    metadata = {
        "general.architecture": "qwen2",
        "qwen2.block_count": 24,
        "qwen2.rope.freq_base": 1e6,
        "tokenizer.ggml.tokens": ["!", '"', "Ġthe", "<|im_end|>", "日本"],
        "tokenizer.ggml.token_type": [1, 1, 1, 3, 1],
        "tokenizer.ggml.add_bos_token": False,
        "negative": -5,
        "wide": 2**40,
        "floats": [0.5, 2.0],
        "flags": [True, False],
    }
    path = tmp_path / "ours.gguf"
    write(path, metadata, tensors)

    assert package_metadata(path) == metadata
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(theirs) == list(tensors)
    for name, (tensor_type, shape, data) in tensors.items():
        assert theirs[name].tensor_type == int(tensor_type)
        assert tuple(theirs[name].shape[::-1]) == shape
        assert theirs[name].data.tobytes() == data
        assert theirs[name].data_offset % 32 == 0
        assert bytes(GGUFFile(path).raw(name)) == data


_INT = st.integers(-(2**63), 2**64 - 1)
_FLOAT = st.floats(width=32, allow_nan=False)
_VALUE = st.one_of(
    st.booleans(),
    _INT,
    _FLOAT,
    st.text(),
    st.lists(st.text(), min_size=1),
    st.lists(_FLOAT, min_size=1),
    st.lists(st.booleans(), min_size=1),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1),
    st.lists(st.integers(0, 2**64 - 1), min_size=1),
)


class _TensorCase(NamedTuple):
    tensor_type: TensorType
    shape: tuple[int, ...]


@st.composite
def _tensor_cases(draw: st.DrawFn) -> _TensorCase:
    tensor_type = draw(st.sampled_from(TensorType))
    outer = draw(st.lists(st.integers(1, 3), max_size=3))
    return _TensorCase(tensor_type, (*outer, draw(st.integers(1, 3)) * type_info(tensor_type).block_size))


@settings(deadline=None)
@given(
    metadata=st.dictionaries(st.text(min_size=1), _VALUE, max_size=6),
    cases=st.dictionaries(
        st.text(min_size=1).filter(lambda name: len(name.encode()) <= 63), _tensor_cases(), max_size=4
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_is_written_is_read_back(
    metadata: dict[str, Any],
    cases: dict[str, _TensorCase],
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    metadata.pop("general.alignment", None)
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / "round-trip.gguf"
    tensors = {
        name: (case.tensor_type, case.shape, rng.bytes(tensor_bytes(*case))) for name, case in cases.items()
    }
    write(path, metadata, tensors)
    file = GGUFFile(path)
    assert dict(file.metadata) == metadata
    assert {name: type(file.metadata[name]) for name in metadata} == {k: type(v) for k, v in metadata.items()}
    assert list(file.tensors) == list(tensors)
    for name, (tensor_type, shape, data) in tensors.items():
        assert (file.tensors[name].type, file.tensors[name].shape) == (tensor_type, shape)
        assert bytes(file.raw(name)) == data
    assert path.stat().st_size % 32 == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, ValueType.BOOL),
        (5, ValueType.UINT32),
        (-5, ValueType.INT32),
        (2**32, ValueType.UINT64),
        (-(2**31) - 1, ValueType.INT64),
        (0.5, ValueType.FLOAT32),
        ("text", ValueType.STRING),
        ([1, 2], ValueType.INT32),
        ([1, 2**31], ValueType.UINT32),
        ([-1, 2**31], ValueType.INT64),
        ([2**64 - 1], ValueType.UINT64),
        ([1, 0.5], ValueType.FLOAT32),
        ([], ValueType.STRING),
        (("a",), ValueType.STRING),
        (np.float32(0.5), ValueType.FLOAT32),
        (np.int64(7), ValueType.UINT32),
        ([np.int64(7), 8], ValueType.INT32),
        *[(np.arange(3, dtype=t.name.lower()), t) for t in ValueType if t.name[0] in "UIF"],
        (np.array([True, False]), ValueType.BOOL),
        (np.arange(3, dtype=">i4"), ValueType.INT32),
    ],
)
def test_the_type_that_a_value_gets(tmp_path: Path, value: Any, expected: ValueType) -> None:
    path = tmp_path / "types.gguf"
    write(path, {"key": value}, {})
    metadata = GGUFFile(path).metadata
    assert metadata.value_type("key") == expected
    assert metadata["key"] == (
        value.tolist()
        if isinstance(value, np.ndarray)
        else value
        if not isinstance(value, tuple)
        else list(value)
    )


@pytest.mark.parametrize("value_type", [t for t in ValueType if t != ValueType.ARRAY], ids=lambda t: t.name)
def test_a_type_may_be_asked_for(tmp_path: Path, value_type: ValueType) -> None:
    value: Any = {ValueType.BOOL: True, ValueType.STRING: "1"}.get(value_type, 1)
    path = tmp_path / "types.gguf"
    with GGUFWriter(path) as writer:
        writer.add_value("scalar", value, value_type)
        writer.add_value("array", [value, value], value_type)
        writer.begin()
        writer.finish()
    metadata = GGUFFile(path).metadata
    assert metadata.value_type("scalar") == metadata.value_type("array") == value_type
    assert dict(metadata) == {"scalar": value, "array": [value, value]}
    field = gguf.GGUFReader(path).fields["scalar"]
    assert field.types == [gguf.GGUFValueType[value_type.name]]
    assert field.contents() == value


@pytest.mark.parametrize(
    ("value", "value_type", "message"),
    [
        (None, None, "a value of type NoneType was given"),
        ({"a": 1}, None, "a value of type dict was given"),
        ([1, "a"], None, "a list must hold only"),
        ([1, True], None, "a list must hold only"),
        ([[1], [2]], None, "a value of type list was given"),
        (2**64, None, "UINT64 does not hold the value|INT64 does not hold the value"),
        ([-1, 2**64 - 1], None, "does not hold the value"),
        (1e300, None, "FLOAT32 does not hold the value"),
        (256, ValueType.UINT8, "UINT8 does not hold the value"),
        (-1, ValueType.UINT32, "UINT32 does not hold the value"),
        (0.5, ValueType.INT32, "INT32 does not hold the value"),
        (True, ValueType.UINT8, "a boolean was given as UINT8"),
        (1, ValueType.BOOL, "something else than a boolean"),
        ("a", ValueType.FLOAT32, "does not hold the value"),
        (1, ValueType.STRING, "cannot be stored as STRING"),
        (1, ValueType.ARRAY, "cannot be stored as ARRAY"),
        ("\ud800", None, "has a surrogate"),
        (np.zeros((2, 2)), None, "2 dimensions"),
        (np.zeros(2, np.float16), None, "type float16"),
        (np.array([300]), ValueType.UINT8, "UINT8 does not hold the value"),
    ],
)
def test_what_gguf_cannot_hold(
    tmp_path: Path, value: Any, value_type: ValueType | None, message: str
) -> None:
    writer = GGUFWriter(tmp_path / "never.gguf")
    with pytest.raises(UsageError, match=message) as error:
        writer.add_value("the.key", value, value_type)
    assert "'the.key'" in error.value.message


def test_a_key_declared_again_takes_the_new_value(tmp_path: Path) -> None:
    path = tmp_path / "again.gguf"
    with GGUFWriter(path) as writer:
        writer.add_metadata({"a": 1, "b": 2})
        writer.add_metadata({"a": "three"})
        writer.begin()
        writer.finish()
    assert dict(GGUFFile(path).metadata) == {"a": "three", "b": 2}


def test_special_floats(tmp_path: Path) -> None:
    path = tmp_path / "floats.gguf"
    write(path, {"values": [math.inf, -math.inf, math.nan, -0.0]}, {})
    values = GGUFFile(path).metadata["values"]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])
    assert math.copysign(1, values[3]) == -1


def test_a_vocabulary_of_152_000_tokens(tmp_path: Path) -> None:
    tokens = [f"token{i}é" for i in range(151_936)]
    merges = [f"a{i} b{i}" for i in range(151_387)]
    path = tmp_path / "vocabulary.gguf"
    write(path, {"tokens": tokens, "merges": merges}, {})
    file = GGUFFile(path)
    assert file.metadata["tokens"] == tokens
    assert file.metadata["merges"] == merges


# -- tensors -----------------------------------------------------------------------------------------------


def test_a_tensor_in_pieces_of_any_buffer(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.float32)
    path = tmp_path / "pieces.gguf"
    with GGUFWriter(path) as writer:
        assert writer.add_tensor("a", (2, 32), TensorType.F32) == 256
        writer.begin()
        writer.write("a", values[:8], bytearray(values[8:16].tobytes()), memoryview(values[16:]))
        writer.finish()
    np.testing.assert_array_equal(GGUFFile(path).read("a"), values.reshape(2, 32))


def test_nbytes_is_the_files_size(tmp_path: Path) -> None:
    path = tmp_path / "size.gguf"
    with GGUFWriter(path) as writer:
        writer.add_metadata({"name": "x"})
        writer.add_tensor("a", (5,), TensorType.F32)
        writer.add_tensor("b", (64,), TensorType.Q2_0)
        expected = writer.nbytes
        writer.begin()
        writer.write("a", bytes(20))
        writer.write("b", bytes(18))
        writer.finish()
    assert path.stat().st_size == expected


@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (1, 1, 1, 1, 1), (-1, 32)])
def test_an_impossible_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="'a' has shape"):
        GGUFWriter(tmp_path / "x.gguf").add_tensor("a", shape, TensorType.F32)


def test_declarations_that_are_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf")
    writer.add_tensor("a", (8,), TensorType.F32)
    with pytest.raises(UsageError, match="'a' is declared twice"):
        writer.add_tensor("a", (8,), TensorType.F32)
    with pytest.raises(UnsupportedModelError, match="rows of 8 values do not fit Q4_0"):
        writer.add_tensor("b", (8,), TensorType.Q4_0)
    with pytest.raises(UnsupportedModelError, match="MXFP4"):
        writer.add_tensor("b", (32,), 39)
    with pytest.raises(UsageError, match="has 64 bytes; 1 to 63 are allowed"):
        writer.add_tensor("x" * 64, (8,), TensorType.F32)
    with pytest.raises(UsageError, match="metadata key '' has 0 bytes"):
        writer.add_value("", 1)
    with pytest.raises(UsageError, match="is not UTF-8"):
        writer.add_value("\udcff", 1)


# -- what is left behind -----------------------------------------------------------------------------------


@pytest.fixture
def writing(tmp_path: Path) -> GGUFWriter:
    """A writer in the middle of its work; in a folder that it made."""
    writer = GGUFWriter(tmp_path / "new" / "folder" / "model.gguf")
    writer.add_tensor("a", (8,), TensorType.F32)
    writer.add_tensor("b", (8,), TensorType.F32)
    writer.begin()
    writer.write("a", bytes(32))
    return writer


def test_the_name_appears_only_when_the_file_is_complete(writing: GGUFWriter) -> None:
    folder = writing.path.parent
    (temporary,) = folder.iterdir()
    assert temporary.name.startswith(".model.gguf.")
    writing.write("b", bytes(32))
    assert not writing.path.exists()
    writing.finish()
    assert list(folder.iterdir()) == [writing.path]
    writing.abort()  # too late: nothing happens
    assert writing.path.exists()


def test_abort_leaves_nothing(writing: GGUFWriter, tmp_path: Path) -> None:
    writing.abort()
    assert list(tmp_path.iterdir()) == []
    writing.abort()
    with pytest.raises(UsageError, match="not the next one declared"):
        writing.write("b", bytes(32))
    with pytest.raises(UsageError, match="not complete"):
        writing.finish()


def test_abort_spares_a_folder_that_others_use(writing: GGUFWriter) -> None:
    other = writing.path.with_name("other")
    other.touch()
    writing.abort()
    assert list(writing.path.parent.iterdir()) == [other]


@pytest.mark.parametrize("data", [bytes(31), bytes(33), b"", bytes(1000)])
def test_a_tensor_of_another_size_ends_the_writing(writing: GGUFWriter, tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UsageError, match="32 were declared"):
        writing.write("b", data)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_and_a_forgotten_finish_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the old file")

    def parts() -> Any:
        yield bytes(16)
        raise KeyboardInterrupt

    for finish in (True, False):
        writer = GGUFWriter(path)
        writer.add_tensor("a", (8,), TensorType.F32)
        if finish:
            with pytest.raises(KeyboardInterrupt), writer:
                writer.begin()
                writer.write_parts("a", parts())
        else:
            with writer:
                writer.begin()
                writer.write("a", bytes(32))
        assert list(tmp_path.iterdir()) == [path]
        assert path.read_bytes() == b"the old file"


def test_calls_out_of_order(tmp_path: Path, writing: GGUFWriter) -> None:
    with pytest.raises(UsageError, match="not the next one declared") as error:
        writing.write("a", bytes(32))
    assert error.value.hint == "Write 'b' next."
    for late in (
        lambda: writing.add_tensor("c", (8,), TensorType.F32),
        lambda: writing.add_value("key", 1),
        writing.begin,
    ):
        with pytest.raises(UsageError, match="declared before begin"):
            late()
    with pytest.raises(UsageError, match="not complete"):
        writing.finish()
    early = GGUFWriter(tmp_path / "early.gguf")
    early.add_tensor("a", (8,), TensorType.F32)
    with pytest.raises(UsageError) as error:
        early.write("a", bytes(32))
    assert error.value.hint == "Call begin() first."
    with pytest.raises(UsageError):
        early.finish()
    writing.write("b", bytes(32))  # none of this harmed it
    writing.finish()
    assert list(GGUFFile(writing.path).tensors) == ["a", "b"]


def test_a_file_is_as_readable_as_the_users_others(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "model.gguf", {"a": 1}, {})
    finally:
        os.umask(old)
    assert (tmp_path / "model.gguf").stat().st_mode & 0o777 == 0o640


# -- disks and folders that do not take it -----------------------------------------------------------------


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    writer = GGUFWriter(tmp_path / "new" / "model.gguf")
    writer.add_tensor("a", (2**28,), TensorType.F32)
    with pytest.raises(ResourceError, match=r"needs 1\.07 GB; its disk has 0\.10 GB free") as error:
        writer.begin()
    assert error.value.hint
    assert list(tmp_path.iterdir()) == []


def test_space_is_looked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    check_disk_space(tmp_path / "not" / "yet" / "model.gguf", 1000)
    with pytest.raises(ResourceError):
        check_disk_space(tmp_path / "not" / "yet" / "model.gguf", 10**18)


_FULL_DISK = """
import resource, signal, sys
from bitqwen.errors import ResourceError
from bitqwen.gguf import GGUFWriter, TensorType

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
writer = GGUFWriter(sys.argv[1])
writer.add_tensor("a", (1 << 20,), TensorType.F32)
writer.begin()
try:
    writer.write("a", bytes(1 << 22))
except ResourceError as error:
    print(error)
"""


def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    assert hasattr(resource, "RLIMIT_FSIZE")
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "model.gguf")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write" in done.stdout
    assert "Free some space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_destination_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "model.gguf", tmp_path / ("x" * 300)):
        writer = GGUFWriter(path)
        with pytest.raises(ModelFileError) as error:
            writer.begin()
        assert error.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with unprivileged(), pytest.raises(ModelFileError, match="Permission denied"):
            GGUFWriter(tmp_path / "model.gguf").begin()
    finally:
        tmp_path.chmod(0o700)
    assert list(tmp_path.iterdir()) == []
