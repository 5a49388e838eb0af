"""Full-size files for speed alone: types that a program gave a narrow model, its blocks repeated.

A quantiser's choice of types depends on names and on the number of layers, and its kernels take the same time
whatever a matrix says. So a narrow model of the same layers is quantised in seconds, and a file of the full
shapes is filled with its blocks: llama-quantize needs up to an hour for the full model in its narrower types.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType

from .weights import Layout, layout

# With four or more queries a key, as the full model has: llama-quantize looks at that too.
_WIDTH, _MLP, _HEADS, _KV_HEADS = 256, 512, 8, 2

# A scale before the blocks of each row: its bytes, by ik_llama.cpp's ids of the types that have one.
_ROW_SCALE = {135: 4, 335: 4, 144: 4, 145: 2, 146: 4, 152: 4, 153: 4, 154: 4, 155: 4, 156: 2, 157: 2}
_TL2 = 39  # bitnet.cpp's id of the type
_I2_S = 36
_PADDED = 32  # bytes; where a tensor begins, and where TL2 and I2_S put a matrix's one scale


def small_source(source: Path, output: Path, seed: int = 0) -> None:
    """Writes a narrow model with the metadata of ``source``, its matrices at random in f16."""
    file = GGUFFile(source)
    random = np.random.default_rng(seed)
    values = dict(file.metadata)
    prefix = f"{values['general.architecture']}."
    for key, value in {
        "embedding_length": _WIDTH,
        "feed_forward_length": _MLP,
        "attention.head_count": _HEADS,
        "attention.head_count_kv": _KV_HEADS,
        "rope.dimension_count": _WIDTH // _HEADS,
        "attention.key_length": _WIDTH // _HEADS,
        "attention.value_length": _WIDTH // _HEADS,
    }.items():
        if prefix + key in values:
            values[prefix + key] = value
    widths = dict(zip(_dimensions(file), (_WIDTH, _MLP, _WIDTH * _KV_HEADS // _HEADS), strict=True))
    with GGUFWriter(output) as writer:
        writer.add_metadata(values)
        shapes = {name: _narrow(name, info.shape, widths) for name, info in file.tensors.items()}
        for name, info in file.tensors.items():
            writer.add_tensor(name, shapes[name], info.type)
        writer.begin()
        for name, info in file.tensors.items():
            x = random.standard_normal(shapes[name]).astype(np.float32) * 0.05
            writer.write(name, x if info.type == TensorType.F32 else x.astype(np.float16))
        writer.finish()


def _dimensions(file: GGUFFile) -> tuple[int, int, int]:
    """Hidden width, width of the MLP and of keys."""
    tensors = file.tensors
    rows, width = tensors["blk.0.ffn_gate.weight"].shape
    return width, rows, tensors["blk.0.attn_k.weight"].shape[0]


def _narrow(name: str, shape: tuple[int, ...], widths: dict[int, int]) -> tuple[int, ...]:
    """A tensor's shape in the narrow model; the vocabulary stays."""
    kept = shape[:1] if name in ("token_embd.weight", "output.weight") else ()
    return (*kept, *(widths.get(size, size) for size in shape[len(kept) :]))


def fill(source: Path, small: Path, output: Path) -> None:
    """Writes a file of ``source``'s shapes in the types of ``small``, whose blocks it repeats.

    Vectors and what ``small`` keeps in the type of ``source`` are taken from ``source``.
    """
    full, narrow = layout(source), layout(small)
    kinds = dict(narrow.types)
    sizes = {name: _nbytes(name, full, narrow) for name in full.shapes}
    with source.open("rb") as whole, small.open("rb") as piece:

        def data(name: str) -> bytes:
            if kinds[name] == full.types[name]:
                whole.seek(full.data + full.offsets[name])
                return whole.read(sizes[name])
            piece.seek(narrow.data + narrow.offsets[name])
            return _repeated(name, piece.read(narrow.sizes[name]), full, narrow)

        _write(output, full, kinds, sizes, data)


def _row_bytes(name: str, narrow: Layout) -> int:
    columns, rows = narrow.shapes[name]
    if narrow.sizes[name] < rows:
        raise ValueError(f"{name} of {columns} x {rows} has only {narrow.sizes[name]} bytes.")
    return narrow.sizes[name] // rows  # what is left over is padding, less than the rows are


def _full_row(name: str, full: Layout, narrow: Layout) -> tuple[int, int]:
    """Bytes before a row's blocks, and bytes of a row of the full width."""
    head = _ROW_SCALE.get(narrow.types[name], 0)
    blocks = (_row_bytes(name, narrow) - head) * full.shapes[name][0]
    return head, head + blocks // narrow.shapes[name][0]


def _nbytes(name: str, full: Layout, narrow: Layout) -> int:
    shape, kind = full.shapes[name], narrow.types[name]
    if kind == full.types[name]:
        return full.sizes[name]
    if kind == _I2_S:  # four weights a byte, then the matrix's scale
        return shape[0] * shape[1] // 4 + _PADDED
    return _full_row(name, full, narrow)[1] * shape[1]


def _repeated(name: str, data: bytes, full: Layout, narrow: Layout) -> bytes:
    """The full matrix: every row is a row of the small one, its blocks over and over."""
    columns, rows = full.shapes[name]
    if narrow.types[name] == _I2_S:
        count = columns * rows // 4
        body = np.frombuffer(data, np.uint8, narrow.shapes[name][0] * narrow.shapes[name][1] // 4)
        return np.resize(body, count).tobytes() + data[len(body) : len(body) + _PADDED].ljust(_PADDED, b"\0")
    head, length = _full_row(name, full, narrow)
    small = np.frombuffer(data, np.uint8)[: _row_bytes(name, narrow) * narrow.shapes[name][1]]
    small = small.reshape(narrow.shapes[name][1], -1)
    times = -(-(length - head) // (small.shape[1] - head))
    wide = np.concatenate([small[:, :head], np.tile(small[:, head:], times)], axis=1)[:, :length]
    return np.resize(wide, (rows, length)).tobytes()


def tl2_nbytes(columns: int, rows: int) -> int:
    """Bytes of a TL2 matrix: 5/24 a weight, the last 256 columns in pairs at 1/4; then its scale, padded."""
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return -(-size // _PADDED) * _PADDED + _PADDED


def tl2(source: Path, output: Path, seed: int = 0) -> None:
    """Writes ``source`` with every matrix of its layers in bitnet.cpp's TL2, its codes at random.

    bitnet.cpp writes TL2 from checkpoints of its own architectures only. All else is copied as it stands.
    """
    full = layout(source)
    random = np.random.default_rng(seed)
    matrices = {name for name, shape in full.shapes.items() if len(shape) == 2 and name.startswith("blk.")}
    kinds = {name: _TL2 if name in matrices else kind for name, kind in full.types.items()}
    sizes = {
        name: tl2_nbytes(*shape[:2]) if name in matrices else full.sizes[name]
        for name, shape in full.shapes.items()
    }
    with source.open("rb") as whole:

        def data(name: str) -> bytes:
            if name in matrices:
                codes = random.integers(0, 256, sizes[name] - _PADDED, dtype=np.uint8)
                return codes.tobytes() + struct.pack("<f", 0.01).ljust(_PADDED, b"\0")
            whole.seek(full.data + full.offsets[name])
            return whole.read(sizes[name])

        _write(output, full, kinds, sizes, data)


def _write(
    output: Path, full: Layout, kinds: dict[str, int], sizes: dict[str, int], data: Callable[[str], bytes]
) -> None:
    """A file with the metadata and shapes of ``full``; appears under its name when it is complete."""
    temporary = output.with_name(output.name + ".part")
    with temporary.open("wb") as out:
        header = b"".join(_header(full, kinds, sizes))
        out.write(header + bytes(-len(header) % _PADDED))
        for name, size in sizes.items():
            piece = data(name)
            if len(piece) != size:
                raise ValueError(f"{name} has {len(piece)} bytes instead of {size}.")
            out.write(piece + bytes(-size % _PADDED))
    temporary.replace(output)


def _header(full: Layout, kinds: dict[str, int], sizes: dict[str, int]) -> Iterator[bytes]:
    yield struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), full.pairs) + full.metadata
    offset = 0
    for name, shape in full.shapes.items():
        encoded = name.encode()
        yield struct.pack("<Q", len(encoded)) + encoded
        yield struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kinds[name], offset)
        offset += -(-sizes[name] // _PADDED) * _PADDED
