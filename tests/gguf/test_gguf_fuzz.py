"""Damaged files, through everything that Python can reach: an answer or a BitqwenError, nothing else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf_bytes import sample
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitqwen.errors import BitqwenError
from bitqwen.gguf import GGUFFile

SAMPLE = sample()
HUGE = [0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, 1 << 61, 1 << 63, (1 << 63) - 1, (1 << 64) - 1]


def read_all(path: Path) -> bool:
    """True if the file could be opened; what it lists can be asked for, or is refused."""
    try:
        file = GGUFFile(path)
    except BitqwenError as error:
        assert error.message
        return False
    for key in file.metadata:
        file.metadata.length(key)
        file.metadata.value_type(key)
        assert file.metadata[key] is not None
    for name, tensor in file.tensors.items():
        try:
            values = file.read(name)
        except BitqwenError:
            assert tensor.type_name not in {"F32", "Q4_0", "Q2_0"}
        else:
            assert values.shape == tensor.shape
            assert len(file.raw(name)) == tensor.nbytes
            assert tensor.offset + tensor.nbytes <= file.nbytes
    return True


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "damaged.gguf"


def _boundaries() -> list[int]:
    """Where the fields of the sample's header begin: every length, key and value."""
    found = {0, 4, 8, 16, 24}
    at = 24
    for key in (b"general.architecture", b"u8", b"bool", b"tokens", b"nested", b"f32.weight", b"q2_0.weight"):
        at = SAMPLE.index(struct.pack("<Q", len(key)) + key, at - 1)
        found |= {at, at + 8, at + 8 + len(key), at + 12 + len(key), at + 16 + len(key), at + 24 + len(key)}
    return sorted(found)


def test_the_sample_is_well_formed(target: Path) -> None:
    target.write_bytes(SAMPLE)
    assert read_all(target)


def test_huge_numbers_in_every_field(target: Path) -> None:
    opened = 0
    for at in _boundaries():
        for value in HUGE:
            for width in ("<I", "<Q"):
                damaged = bytearray(SAMPLE)
                struct.pack_into(width, damaged, at, value & (0xFFFFFFFF if width == "<I" else 2**64 - 1))
                target.write_bytes(damaged)
                opened += read_all(target)
    assert 0 < opened < len(_boundaries()) * len(HUGE)


def test_every_byte_of_the_header_flipped(target: Path) -> None:
    opened = 0
    header = SAMPLE.rindex(b"q2_0.weight") + 40
    for at in range(header):
        damaged = bytearray(SAMPLE)
        damaged[at] ^= 0xFF
        target.write_bytes(damaged)
        opened += read_all(target)
    assert 0 < opened < header


_POSITION = st.integers(0, len(SAMPLE) - 1)
_CHANGE = st.one_of(
    st.tuples(st.just("cut"), _POSITION, st.just(b"")),
    st.tuples(st.just("overwrite"), _POSITION, st.binary(min_size=1, max_size=8)),
    st.tuples(
        st.just("overwrite"),
        st.sampled_from(_boundaries()),
        st.sampled_from([struct.pack("<Q", n) for n in HUGE]),
    ),
    st.tuples(st.just("insert"), _POSITION, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("delete"), _POSITION, st.binary(min_size=1, max_size=16)),
)


def _damage(changes: list[tuple[str, int, bytes]]) -> bytes:
    data = SAMPLE
    for kind, at, piece in changes:
        if kind == "cut":
            data = data[:at]
        elif kind == "overwrite":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + data[at + len(piece) :]
    return data


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(_CHANGE, min_size=1, max_size=4))
@example(changes=[("cut", 0, b"")])
@example(changes=[("overwrite", 4, struct.pack("<I", 2))])
def test_any_damage(target: Path, changes: list[tuple[str, int, bytes]]) -> None:
    target.write_bytes(_damage(changes))
    read_all(target)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400), counts=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_any_bytes_after_a_good_beginning(target: Path, data: bytes, counts: tuple[int, int]) -> None:
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + data)
    read_all(target)
