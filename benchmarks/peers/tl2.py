"""A file in bitnet.cpp's TL2 for its speed alone: the shapes and sizes of a model, its codes at random.

bitnet.cpp writes TL2 from checkpoints of its own architectures only. Its kernels take the same time whatever
the codes are, so that a file of the right layout shows what they would do on this model.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from .weights import layout

_TL2 = 39  # bitnet.cpp's id of the type
_ALIGNMENT = 32


def nbytes(columns: int, rows: int) -> int:
    """Bytes of a TL2 matrix: 5/24 a weight, the last 256 columns in pairs at 1/4; then its scale, padded."""
    size = (columns - 256) * rows // 3 * 5 // 8 + 256 * rows // 2 * 4 // 8
    return -(-size // 32) * 32 + 32


def write(source: Path, output: Path, seed: int = 0) -> None:
    """Writes ``source`` (any GGUF file of the model) with every matrix of its layers in TL2.

    All other tensors, embedding and norms, are copied as they stand.
    """
    about = layout(source)
    random = np.random.default_rng(seed)
    matrices = {name for name, shape in about.shapes.items() if len(shape) == 2 and name.startswith("blk.")}
    sizes = {
        name: nbytes(*shape[:2]) if name in matrices else about.sizes[name]
        for name, shape in about.shapes.items()
    }
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(sizes), about.pairs) + about.metadata
    offset = 0
    for name, shape in about.shapes.items():
        encoded = name.encode()
        kind = _TL2 if name in matrices else about.types[name]
        header += (
            struct.pack("<Q", len(encoded)) + encoded + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        )
        header += struct.pack("<IQ", kind, offset)
        offset += -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT
    temporary = output.with_name(output.name + ".part")
    with source.open("rb") as data, temporary.open("wb") as out:
        out.write(header + bytes(-len(header) % _ALIGNMENT))
        for name, size in sizes.items():
            if name in matrices:
                codes = random.integers(0, 256, size - 32, dtype=np.uint8)
                piece = codes.tobytes() + struct.pack("<f", 0.01) + bytes(28)
            else:
                data.seek(about.data + about.offsets[name])
                piece = data.read(size)
            out.write(piece + bytes(-len(piece) % _ALIGNMENT))
    temporary.replace(output)
