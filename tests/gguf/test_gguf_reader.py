"""Reading: against files of the gguf package's own writer, and files damaged by hand."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_bytes import (
    ARRAY,
    SAMPLE_METADATA,
    STRING,
    UINT8,
    Tensor,
    gguf_bytes,
    sample,
    string,
    text_value,
    uint32_value,
    unprivileged,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf
from bitqwen.errors import BitqwenError, ModelFileError, UnsupportedModelError, UsageError
from bitqwen.gguf import GGUFFile, TensorType, ValueType, type_info


@pytest.fixture
def opened(tmp_path: Path) -> Any:
    def write_and_open(data: bytes) -> GGUFFile:
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return GGUFFile(path)

    return write_and_open


# -- well-formed files -------------------------------------------------------------------------------------


def test_every_type_of_value(opened: Any) -> None:
    file = opened(sample())
    assert dict(file.metadata) == SAMPLE_METADATA
    assert list(file.metadata) == list(SAMPLE_METADATA)
    assert len(file.metadata) == len(SAMPLE_METADATA)
    assert file.metadata["bool"] is True
    assert file.metadata.get("missing") is None
    with pytest.raises(KeyError):
        file.metadata["missing"]


def test_types_and_lengths_without_decoding(opened: Any) -> None:
    metadata = opened(sample()).metadata
    assert metadata.length("tokens") == 3
    assert metadata.length("u8") == 1
    assert metadata.value_type("f64") == ValueType.FLOAT64
    assert metadata.value_type("tokens") == ValueType.STRING
    assert metadata.value_type("numbers") == ValueType.INT16


def test_tensors_of_the_sample(opened: Any) -> None:
    file = opened(sample())
    start = file.native.data_offset
    assert [tuple(t) for t in file.tensors.values()] == [
        ("f32.weight", TensorType.F32, (2, 3), start, 24, "F32"),
        ("q4_0.weight", TensorType.Q4_0, (2, 32), start + 32, 36, "Q4_0"),
        ("mxfp4.weight", 39, (1, 32), start + 96, 32, "MXFP4"),
        ("q2_0.weight", TensorType.Q2_0, (64,), start + 128, 18, "Q2_0"),
    ]
    np.testing.assert_array_equal(file.read("f32.weight"), np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(file.read("q2_0.weight"), np.tile(np.float32([-1, 0, 1, 2]), 16))
    assert bytes(file.raw("q4_0.weight")) == bytes(range(36))
    assert not file.raw("q4_0.weight").flags.writeable


def test_raw_bytes_outlive_the_file_object(opened: Any) -> None:
    raw = opened(sample()).raw("q4_0.weight")
    assert raw[35] == 35


def test_rows_of_a_tensor(opened: Any) -> None:
    file = opened(sample())
    np.testing.assert_array_equal(file.read("q4_0.weight", 1, 2), file.read("q4_0.weight")[1:])
    assert file.read("q4_0.weight", 1, 1).shape == (0, 32)
    for begin, end in [(0, 3), (2, 1), (-1, 1)]:
        with pytest.raises(UsageError, match="of a tensor of 2"):
            file.read("q4_0.weight", begin, end)


def test_release_leaves_a_tensor_readable(opened: Any) -> None:
    file = opened(sample())
    before = file.read("q4_0.weight")
    file.release("q4_0.weight")
    np.testing.assert_array_equal(file.read("q4_0.weight"), before)


def test_a_file_without_tensors(opened: Any) -> None:
    file = opened(gguf_bytes({"general.name": text_value("vocabulary")}))
    assert file.tensors == {}
    assert file.metadata["general.name"] == "vocabulary"


def test_version_2_is_read(opened: Any) -> None:
    assert opened(gguf_bytes({"a": uint32_value(1)}, version=2)).metadata["a"] == 1


def test_strings_that_are_not_utf8_can_be_looked_at(opened: Any) -> None:
    value = struct.pack("<I", STRING) + string(b"caf\xe9")
    assert (
        opened(gguf_bytes({"general.name": value})).metadata["general.name"] == "caf\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("name", ["模型.gguf", b"caf\xe9.gguf"])
def test_any_name_that_the_file_system_allows(tmp_path: Path, name: str | bytes) -> None:
    path = os.path.join(os.fsencode(tmp_path), os.fsencode(name))  # noqa: PTH118 - a Path holds no bytes
    Path(os.fsdecode(path)).write_bytes(sample())
    assert GGUFFile(os.fsdecode(path)).metadata["u8"] == 200
    Path(os.fsdecode(path)).write_bytes(b"")
    with pytest.raises(ModelFileError):
        GGUFFile(Path(os.fsdecode(path)))


# -- files of the gguf package -----------------------------------------------------------------------------

PACKAGE_TYPES = [t for t in TensorType if t not in (TensorType.Q2_0, TensorType.I8) and t < 20000]


def test_a_file_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "package.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_custom_alignment(128)
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4000000000)
    writer.add_int32("i32", -2000000000)
    writer.add_uint64("u64", 2**63)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.25)
    writer.add_float64("f64", 0.1)
    writer.add_bool("bool", False)
    writer.add_string("string", "日本語")
    writer.add_array("strings", ["a", "bc", "", "é"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, -0.25])
    writer.add_array("bools", [True, False])
    rng = np.random.default_rng(1)
    tensors: dict[str, tuple[TensorType, Any]] = {}
    for tensor_type in PACKAGE_TYPES:
        info = type_info(tensor_type)
        if tensor_type == TensorType.F32:
            data = rng.standard_normal((3, 5), dtype=np.float32)
        elif tensor_type == TensorType.F16:
            data = rng.standard_normal((3, 5), dtype=np.float32).astype(np.float16)
        else:
            data = rng.integers(0, 256, (3, 2 * info.block_bytes), dtype=np.uint8)
        tensors[f"{tensor_type.name}.weight"] = (tensor_type, data)
        raw = None if data.dtype != np.uint8 else gguf.GGMLQuantizationType(int(tensor_type))
        writer.add_tensor(f"{tensor_type.name}.weight", data, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = GGUFFile(path)
    assert file.native.alignment == 128
    expected = {
        "general.architecture": "qwen2",
        "general.alignment": 128,
        "u8": 200,
        "i8": -100,
        "u16": 60000,
        "i16": -30000,
        "u32": 4000000000,
        "i32": -2000000000,
        "u64": 2**63,
        "i64": -(2**63),
        "f32": 0.25,
        "f64": 0.1,
        "bool": False,
        "string": "日本語",
        "strings": ["a", "bc", "", "é"],
        "ints": [1, -2, 3],
        "floats": [0.5, -0.25],
        "bools": [True, False],
    }
    assert dict(file.metadata) == expected
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(file.tensors) == list(tensors)
    for name, (tensor_type, data) in tensors.items():
        tensor = file.tensors[name]
        assert tensor.type is tensor_type
        assert tensor.offset == theirs[name].data_offset
        assert tensor.nbytes == theirs[name].n_bytes
        assert tensor.shape == tuple(int(n) for n in theirs[name].shape[::-1])
        assert bytes(file.raw(name)) == data.tobytes()
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type)
        np.testing.assert_array_equal(file.read(name), values.reshape(tensor.shape))


_SCALARS = {
    "add_uint8": st.integers(0, 2**8 - 1),
    "add_int8": st.integers(-(2**7), 2**7 - 1),
    "add_uint16": st.integers(0, 2**16 - 1),
    "add_int16": st.integers(-(2**15), 2**15 - 1),
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int32": st.integers(-(2**31), 2**31 - 1),
    "add_uint64": st.integers(0, 2**64 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float32": st.floats(width=32, allow_nan=False),
    "add_float64": st.floats(allow_nan=False),
    "add_bool": st.booleans(),
    "add_string": st.text(min_size=1),
    "add_array": st.one_of(
        st.lists(st.text(), min_size=1),
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1),
        st.lists(st.floats(width=32, allow_nan=False), min_size=1),
    ),
}
_ENTRIES = st.sampled_from(list(_SCALARS)).flatmap(lambda add: st.tuples(st.just(add), _SCALARS[add]))


@settings(deadline=None)
@given(metadata=st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1), _ENTRIES, max_size=8))
def test_whatever_metadata_the_gguf_package_writes(
    metadata: dict[str, tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    metadata.pop("general.alignment", None)
    path = tmp_path_factory.getbasetemp() / "package-metadata.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    metadata.pop("general.architecture", None)
    for key, (add, value) in metadata.items():
        getattr(writer, add)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    expected = {"general.architecture": "qwen2"} | {key: value for key, (_, value) in metadata.items()}
    assert dict(GGUFFile(path).metadata) == expected


# -- damaged files: what the error says --------------------------------------------------------------------

_F32 = Tensor("a.weight", (8,), 0, 0)  # 32 bytes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it has 0 bytes; the header alone takes 24"),
        (b"GGUF" + bytes(10), "it has 14 bytes"),
        (gguf_bytes(magic=b"GGML"), "does not begin with 'GGUF'"),
        (b"<!DOCTYPE html><html><body>Not found", "does not begin with 'GGUF'"),
        (
            gguf_bytes(key_count=2**64 - 1) + bytes(100),
            "claims 0 tensors and 18446744073709551615 metadata keys",
        ),
        (gguf_bytes(tensor_count=2**61) + bytes(100), "claims 2305843009213693952 tensors"),
        (gguf_bytes(key_count=3, metadata={"a": uint32_value(1)}) + bytes(50), "is empty or not UTF-8"),
        (gguf_bytes({"a": struct.pack("<I", 13)}) + bytes(8), "key 'a' has value type 13; 0 to 12 are known"),
        (gguf_bytes({"a": struct.pack("<IIQ", ARRAY, 99, 1)}) + bytes(8), "key 'a' has value type 99"),
        (
            gguf_bytes({"a": struct.pack("<IIQ", ARRAY, UINT8, 2**60)}),
            "'a' claims 1152921504606846976 elements",
        ),
        (
            gguf_bytes({"a": struct.pack("<IIQ", ARRAY, STRING, 2**61)}),
            "'a' claims 2305843009213693952 elements",
        ),
        (gguf_bytes({"a": struct.pack("<IQ", STRING, 2**63)}), "'a' has 9223372036854775808 bytes"),
        (
            gguf_bytes({"a": struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 9 + bytes(99)}),
            "'a' nests arrays more than 4 deep",
        ),
        (
            gguf_bytes([("a", uint32_value(1)), ("b", uint32_value(1)), ("a", uint32_value(2))]),
            "key 'a' twice",
        ),
        (gguf_bytes({b"caf\xe9": uint32_value(1)}), r"key 'caf\?' is empty or not UTF-8"),
        (gguf_bytes({"general.alignment": uint32_value(0)}), "general.alignment is 0; a power of two"),
        (gguf_bytes({"general.alignment": uint32_value(48)}), "general.alignment is 48; a power of two"),
        (gguf_bytes({"general.alignment": uint32_value(2**30)}), "general.alignment is 1073741824"),
        (gguf_bytes({"general.alignment": text_value("32")}), "is of type string; an integer is expected"),
        (gguf_bytes(tensors=[_F32, _F32], data=bytes(64)), "tensor 'a.weight' twice"),
        (gguf_bytes(tensors=[Tensor(b"\xff", (8,), 0, 0)], data=bytes(32)), r"tensor name '\?' is not UTF-8"),
        (gguf_bytes(tensors=[Tensor("a.weight", (), 0, 0)], data=bytes(32)), "has 0 dimensions; 1 to 4"),
        (
            gguf_bytes(tensors=[Tensor("a.weight", (1,) * 5, 0, 0)], data=bytes(32)),
            "has 5 dimensions; 1 to 4",
        ),
        (
            gguf_bytes(tensors=[Tensor("a.weight", (8, 0), 0, 0)], data=bytes(32)),
            "'a.weight' has an impossible shape",
        ),
        (
            gguf_bytes(tensors=[Tensor("a.weight", (2**32, 2**32), 0, 0)]),
            "'a.weight' has an impossible shape",
        ),
        (gguf_bytes(tensors=[Tensor("a.weight", (2**62,), 0, 0)]), "'a.weight' has an impossible shape"),
        (gguf_bytes(tensors=[Tensor("a.weight", (2**64 - 1,), 0, 0)]), "'a.weight' has an impossible shape"),
        (
            gguf_bytes(tensors=[Tensor("a.weight", (100,), 12, 0)], data=bytes(144)),
            "'a.weight' has rows of 100 values; Q4_K needs a multiple of 256",
        ),
        (gguf_bytes(tensors=[Tensor("a.weight", (8,), 0, 8)], data=bytes(64)), "offset 8, not a multiple"),
        (
            gguf_bytes(tensors=[Tensor("a.weight", (8,), 0, 2**64 - 32)], data=bytes(64)),
            "begins beyond the file's",
        ),
        (gguf_bytes(tensors=[_F32], data=bytes(31)), "'a.weight' of 32 bytes ends beyond the file's"),
        (
            gguf_bytes(
                tensors=[Tensor("a.weight", (9,), 0, 0), Tensor("b.weight", (1,), 0, 32)], data=bytes(64)
            ),
            "tensors 'a.weight' and 'b.weight' overlap",
        ),
        (
            gguf_bytes(
                tensors=[Tensor("a.weight", (8,), 0, 0), Tensor("b.weight", (8,), 0, 0)], data=bytes(64)
            ),
            "overlap",
        ),
    ],
)
def test_a_damaged_file_is_refused(opened: Any, data: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as error:
        opened(data)
    assert "file.gguf" in error.value.message or "metadata key" in error.value.message
    assert error.value.hint


def test_a_cut_file_is_refused_wherever_it_is_cut(opened: Any) -> None:
    data = sample()
    for length in range(len(data)):
        with pytest.raises(ModelFileError):
            opened(data[:length])


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "is GGUF version 1"),
        (4, "is GGUF version 4"),
        (0, "is GGUF version 0"),
        (3 << 24, "is a big-endian GGUF file"),
    ],
)
def test_other_versions_are_refused_by_name(opened: Any, version: int, message: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match=f"{message}; little-endian versions 2 and 3 are supported"
    ):
        opened(gguf_bytes(version=version))


def test_a_missing_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"cannot open .*missing\.gguf: No such file") as error:
        GGUFFile(tmp_path / "missing.gguf")
    assert error.value.hint
    with pytest.raises(ModelFileError, match="is not a regular file"):
        GGUFFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="is not a regular file"):
        GGUFFile(tmp_path / "pipe")
    with pytest.raises(UsageError, match="zero byte"):
        GGUFFile("a\0b")


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.gguf"
    path.write_bytes(sample())
    path.chmod(0)
    with unprivileged(), pytest.raises(ModelFileError, match="Permission denied"):
        GGUFFile(path)


# -- types that are not read -------------------------------------------------------------------------------


def test_an_unread_type_is_listed_and_refused_when_used(opened: Any) -> None:
    file = opened(sample())
    assert file.tensors["mxfp4.weight"].type == 39
    for use in (file.raw, file.read, file.release):
        with pytest.raises(
            UnsupportedModelError, match=r"tensor 'mxfp4\.weight' has type MXFP4 \(39\)"
        ) as error:
            use("mxfp4.weight")
        assert "the file says: general.architecture 'qwen2'" in error.value.message
        assert "bitqwen convert" in error.value.hint


@pytest.mark.parametrize(
    ("architecture", "type_id", "name"),
    [
        ("bitnet-b1.58", 39, "TL2 (bitnet.cpp)"),
        ("llama", 39, "MXFP4"),
        ("bitnet-b1.58", 36, "I2_S (bitnet.cpp)"),
        ("qwen3", 142, "PQ2_0 (Prism)"),
        ("qwen2", 77, "unknown"),
    ],
)
def test_a_type_is_named_as_its_writer_meant_it(
    opened: Any, architecture: str, type_id: int, name: str
) -> None:
    file = opened(
        gguf_bytes(
            {
                "general.architecture": text_value(architecture),
                "general.quantized_by": text_value("somebody"),
            },
            [Tensor("a.weight", (256,), type_id, 0)],
            bytes(64),
        )
    )
    assert file.tensors["a.weight"].type_name == name
    with pytest.raises(UnsupportedModelError) as error:
        file.read("a.weight")
    assert f"{name} ({type_id})" in error.value.message
    assert "general.quantized_by 'somebody'" in error.value.message


def test_q2_0_with_blocks_of_128_is_told_apart(opened: Any) -> None:
    legacy = 34 * 64  # two bytes for each 128 values less than blocks of 64 take
    tensors = [Tensor(f"{i}.weight", (64, 128), 42, i * legacy) for i in range(2)]
    with pytest.raises(
        UnsupportedModelError, match=r"'0\.weight' says type Q2_0 \(42\) and has the size of blocks of 128"
    ) as error:
        opened(gguf_bytes(tensors=tensors, data=bytes(2 * legacy)))
    assert "g64" in error.value.hint


def test_an_unknown_tensor(opened: Any) -> None:
    with pytest.raises(UsageError, match=r"file\.gguf has no tensor 'b\.weight'"):
        opened(sample()).read("b.weight")


# -- files that change while they are open -----------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, 10**6])
def test_a_file_cut_or_grown_since_it_was_opened(opened: Any, size: int) -> None:
    file = opened(sample())
    os.truncate(file.path, size)
    uses = [lambda: file.read("f32.weight"), lambda: file.raw("f32.weight"), lambda: file.metadata["tokens"]]
    for use in uses:
        with pytest.raises(ModelFileError, match="was changed or cut while it was in use"):
            use()


def test_a_file_written_to_since_it_was_opened(opened: Any) -> None:
    file = opened(sample())
    Path(file.path).write_bytes(sample())
    os.utime(file.path, (1, 1))
    with pytest.raises(BitqwenError, match="was changed"):
        file.read("f32.weight")


def test_a_file_replaced_by_renaming_stays_readable(opened: Any, tmp_path: Path) -> None:
    file = opened(sample())
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "other").replace(file.path)
    assert file.read("f32.weight").shape == (2, 3)
