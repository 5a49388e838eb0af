"""Generated kernels, compiled, against plain integer products; and the committed presets."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bitqwen.errors import ModelFileError, ResourceError
from bitqwen.kernels import SIZES, TARGETS, generate, preset
from bitqwen.kernels import compiler as compilers
from bitqwen.kernels.library import Library
from bitqwen.kernels.targets import runs_here
from bitqwen.models.qwen2 import Qwen2Config
from helpers.tiny_checkpoint import TinyModel

ROOT = Path(__file__).parents[2]
ARM_COMPILER, ARM_EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")

# Rows of 896, 256 and 64 columns: scales of both widths.
SMALL = TinyModel(hidden=896, intermediate=256, heads=14, kv_heads=2, head_dim=64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path_factory.mktemp("cache")))


# Several blocks of tables in a row.
BLOCKS = TinyModel(hidden=768, intermediate=1280, heads=12, kv_heads=4, head_dim=64)


def small(target, model=SMALL, **tiles):
    config = Qwen2Config.from_hf(model.config_json())
    return generate(config, TARGETS[target], model="small", command="test", **tiles)


@pytest.fixture(scope="module")
def compiler():
    found = compilers.find()
    if found is None:
        pytest.skip("no C++ compiler here")
    return found


@pytest.mark.parametrize("target", ["x86", "avx512"])
@pytest.mark.parametrize(
    ("model", "tiles"), [(SMALL, {}), (BLOCKS, {"rows": 64, "cols": 256})], ids=["small", "blocks"]
)
def test_tl2_is_exact(target, model, tiles, compiler):
    if not runs_here(TARGETS[target]):
        pytest.skip(f"this CPU has no {TARGETS[target].needs}")
    made = small(target, model, **tiles)
    path = compilers.shared_library(made.header, made.target.flags)
    library = Library(path)
    assert [(f.rows, f.cols, f.tile_rows, f.block, f.lanes) for f in library.kernels] == [
        (shape.rows, shape.cols, tile.rows, tile.cols, tile.lanes) for shape, tile in made.kernels
    ]
    assert library.wrong(tiles=99) == []
    assert compilers.shared_library(made.header, made.target.flags) == path


def test_a_wrong_kernel_is_found(compiler):
    target = next((t for t in ("avx512", "x86") if runs_here(TARGETS[t])), None)
    if target is None:
        pytest.skip("no x86 here")
    made = small(target)
    broken = made.header.replace("31 << 8 | 1", "30 << 8 | 1")
    assert broken != made.header
    library = Library(compilers.shared_library(broken, made.target.flags))
    assert library.wrong() == library.kernels


def test_bytes_are_those_of_the_layout(compiler):
    target = next((t for t in ("avx512", "x86") if runs_here(TARGETS[t])), None)
    if target is None:
        pytest.skip("no x86 here")
    made = small(target)
    for facts in Library(compilers.shared_library(made.header, made.target.flags)).kernels:
        # 5 bits for three weights as far as 24 divides a cell, 4 bits for two, 16 for a scale.
        triples = facts.cell // 24 * 24
        cell = triples * 5 // 3 + (facts.cell - triples) * 2
        row = facts.cols // facts.cell * cell + facts.cols // facts.unit * 16
        assert facts.tile_bytes * 8 == facts.tile_rows * row


@pytest.mark.parametrize("target", ["x86", "avx512"])
def test_weights_lie_where_the_page_says(target, compiler):
    """docs/kernels.md, "Why look-up tables": a triple's index and sign, a pair's index, a row's scale."""
    if not runs_here(TARGETS[target]):
        pytest.skip(f"this CPU has no {TARGETS[target].needs}")
    made = small(target)
    path = compilers.shared_library(made.header, made.target.flags)
    number, facts = next((i, f) for i, f in enumerate(Library(path).kernels) if f.unit == 256)
    library, lanes = ctypes.CDLL(str(path)), facts.lanes

    def packed(weights, scales):
        out = np.empty(facts.tile_bytes, np.uint8)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (weights, scales, out)]
        assert library.bitqwen_lut_pack_tile(ctypes.c_int32(number), *pointers) == 0
        return out

    def changed(row, column, values):
        weights = np.zeros((facts.tile_rows, facts.cols), np.int8)
        scales = np.zeros((facts.tile_rows, facts.cols // 256), np.uint16)
        before = packed(weights, scales)
        weights[row, column : column + len(values)] = values
        after = packed(weights, scales)
        return {int(at): int(after[at]) for at in np.flatnonzero(before != after)}

    row, cells = 13, 2 * lanes
    cell = lanes * 27  # bytes: 25 a row for triples, 2 for pairs
    assert changed(row, 0, [1, 0, -1]) == {cells + row: 8}
    assert changed(row, 3, [1, 1, 1]) == {cells + row: 13 << 4}
    assert changed(row, 18, [0, 1, 0]) == {cells + 3 * lanes + row: 3}
    assert changed(row, 24, [0, 0, 1]) == {cells + 5 * lanes + row: 1}
    sign = 4 * lanes + row if target == "x86" else 4 * lanes + 8 * 2 + row // 8
    bit = 1 << (7 - 2) if target == "x86" else 1 << row % 8
    assert changed(row, 6, [-1, 0, 0]) == {cells + lanes + row: 9, cells + sign: bit}
    assert changed(row, 120, [1, 1]) == {cells + 25 * lanes + row: 4 << 4 | 8}
    assert changed(row, 126, [-1, -1]) == {cells + 26 * lanes + row: 0 << 4 | 4}
    assert changed(row, 128, [1, 0, 0]) == {cells + cell + row: 9}

    scales = np.zeros((facts.tile_rows, facts.cols // 256), np.uint16)
    scales[row, 0] = 0x3C01
    out = packed(np.zeros((facts.tile_rows, facts.cols), np.int8), scales)
    assert out[2 * row : 2 * row + 2].tolist() == [0x01, 0x3C]


ARM_MAIN = r"""
#include <cstdio>
#include <vector>
int main() {
  unsigned state = 1;
  const auto below = [&](int n) {
    state = state * 1664525u + 1013904223u;
    return static_cast<int>((state >> 8) % n);
  };
  for (int i = 0; i < bitqwen_lut_count(); ++i) {
    int64_t f[9];
    bitqwen_lut_describe(i, f);
    const int64_t k = f[1], bm = f[2];
    for (int pattern = 0; pattern < 2; ++pattern) {
      std::vector<int8_t> w(bm * k), x(k), tables(f[8]);
      std::vector<uint8_t> packed(f[7]);
      std::vector<float> y(bm), of_x(k / f[5], 1.0f);
      std::vector<uint16_t> of_w(bm * (k / f[6]), 0x3c00);
      for (auto& v : x) v = static_cast<int8_t>(pattern ? (below(2) ? 127 : -127) : below(255) - 127);
      for (int64_t j = 0; j < bm * k; ++j)
        w[j] = static_cast<int8_t>(pattern ? ((j / k) % 2 ? 1 : -1) * (x[j % k] < 0 ? -1 : 1) : below(3) - 1);
      bitqwen_lut_pack_tile(i, w.data(), of_w.data(), packed.data());
      bitqwen_lut_prepare(i, x.data(), tables.data());
      bitqwen_lut_multiply_tile(i, packed.data(), tables.data(), of_x.data(), y.data(), 0, bm / f[4]);
      for (int64_t r = 0; r < bm; ++r) {
        int32_t expected = 0;
        for (int64_t c = 0; c < k; ++c) expected += w[r * k + c] * x[c];
        if (y[r] == float(expected)) continue;
        std::printf("kernel %d row %d: %f, not %d\n", i, int(r), double(y[r]), expected);
        return 1;
      }
    }
  }
  std::printf("%d kernels exact\n", bitqwen_lut_count());
}
"""


@pytest.mark.skipif(not (ARM_COMPILER and ARM_EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu-user")
@pytest.mark.parametrize("tiles", [{}, {"lanes": 32, "rows": 32}], ids=["default", "given"])
def test_tl1_is_exact_on_arm(tiles, tmp_path):
    made = small("arm", **tiles)
    source, program = tmp_path / "main.cpp", tmp_path / "main"
    (tmp_path / "kernels.h").write_text(made.header)
    source.write_text('#include "kernels.h"\n' + ARM_MAIN)
    subprocess.run(
        [ARM_COMPILER, "-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-static", source, "-o", program],
        check=True,
    )
    result = subprocess.run([ARM_EMULATOR, program], capture_output=True, text=True)
    assert result.stdout == f"{len(made.kernels)} kernels exact\n", result.stdout + result.stderr


@pytest.mark.parametrize("size", SIZES)
def test_presets_are_what_the_generator_writes(size):
    folder = ROOT / "preset_kernels" / f"qwen25-{size}"
    expected: dict[str, str] = {}
    for target in TARGETS.values():
        command = f"bitqwen kernels generate {size.upper()} --output DIR"
        expected |= generate(preset(size), target, model=f"Qwen2.5-{size.upper()}", command=command).files
    assert {path.name: path.read_text() for path in folder.iterdir()} == expected


def test_a_library_that_is_none(tmp_path):
    path = tmp_path / "lut.so"
    path.write_bytes(b"not a library")
    with pytest.raises(ModelFileError, match="no library of generated kernels"):
        Library(path)


def test_source_that_does_not_compile(compiler):
    with pytest.raises(ResourceError, match="refuses"):
        compilers.shared_library("int main( {", ())


def test_no_compiler(monkeypatch):
    monkeypatch.setattr(compilers, "find", lambda: None)
    with pytest.raises(ResourceError, match="no C\\+\\+ compiler") as caught:
        compilers.shared_library("", ())
    assert "ziglang" in caught.value.hint


def test_names_cannot_break_out_of_their_comment():
    config = Qwen2Config.from_hf(SMALL.config_json())
    made = generate(config, TARGETS["x86"], model="a\nint evil; \\\n", command="b\r\n*/")
    assert "evil" in made.header
    assert not any(line.startswith("int evil") for line in made.header.splitlines())


def test_wrong_shapes_are_refused(compiler):
    target = next((t for t in ("avx512", "x86") if runs_here(TARGETS[t])), None)
    if target is None:
        pytest.skip("no x86 here")
    made = small(target)
    library = Library(compilers.shared_library(made.header, made.target.flags))
    with pytest.raises(ValueError, match="tiles"):
        library.multiply(0, np.zeros((1, 896), np.int8), np.zeros(896, np.int8))
