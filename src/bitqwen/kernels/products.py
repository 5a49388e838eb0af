"""The matrix products of a step of a model: what kernels are chosen for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bitqwen import _native
from bitqwen.gguf import GGUFFile, TensorType
from bitqwen.models.qwen2 import Qwen2Config

# What the engine multiplies in one loop, with the same activations.
_LOOPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class ProductKey(NamedTuple):
    """Matrices of one packed format that one loop multiplies: their rows together, and their columns."""

    format: str
    rows: int
    cols: int


@dataclass(frozen=True)
class Product:
    """One product.

    Attributes:
        key: what a plan knows it by.
        tensor_type: a type that is packed to that format.
        names: its matrices, without the block's number.
        count: how many a step computes.
        granule: rows that divide each of its matrices' rows.
    """

    key: ProductKey
    tensor_type: TensorType
    names: tuple[str, ...]
    count: int
    granule: int


class _Matrix(NamedTuple):
    name: str
    tensor_type: TensorType
    rows: int
    cols: int


def of_config(config: Qwen2Config, scheme: str) -> list[Product]:
    """The products of a model that is stored in a scheme.

    Raises:
        UsageError: no such scheme, or it has no type for this model's rows.
    """
    from bitqwen.quant import schemes  # the engine, which opens files that have their types, needs none

    chosen = schemes.get(scheme)
    matrices = {}
    for spec in config.tensors():
        if len(spec.shape) == 2 and not spec.optional:
            plan = chosen.plan(spec.role, spec.shape)
            matrices[spec.gguf_name] = _Matrix(spec.gguf_name, plan.tensor_type, *spec.shape)
    return _products(matrices)


def of_file(file: GGUFFile) -> list[Product]:
    """The products of the model in a GGUF file, whose layers may be of different types."""
    matrices = {
        name: _Matrix(name, TensorType(tensor.type), *tensor.shape)
        for name, tensor in file.tensors.items()
        if len(tensor.shape) == 2 and name.endswith(".weight")
    }
    return _products(matrices)


def _products(matrices: Mapping[str, _Matrix]) -> list[Product]:
    found: dict[ProductKey, Product] = {}
    blocks = sorted({int(name.split(".")[1]) for name in matrices if name.startswith("blk.")})
    for block in blocks:
        for loop in _LOOPS:
            names = [f"blk.{block}.{name}.weight" for name in loop]
            _add(found, [matrices[name] for name in names if name in matrices])
    head = matrices.get(_HEAD) or matrices.get(_EMBEDDING)
    if head is not None:
        _add(found, [head])
    return list(found.values())


def _add(found: dict[ProductKey, Product], loop: Iterable[_Matrix]) -> None:
    """Counts the products of one loop: one for each packed format in it."""
    parts: dict[tuple[str, int], list[_Matrix]] = {}
    for matrix in loop:
        parts.setdefault((_native.packed_format(matrix.tensor_type), matrix.cols), []).append(matrix)
    for (name, cols), part in parts.items():
        key = ProductKey(name, sum(matrix.rows for matrix in part), cols)
        names = [matrix.name.removesuffix(".weight").rsplit(".", 1)[-1] for matrix in part]
        before = found.get(key)
        known = before.names if before else ()
        found[key] = Product(
            key,
            part[0].tensor_type,
            (*known, *(n for n in names if n not in known)),
            before.count + 1 if before else 1,
            math.gcd(*(matrix.rows for matrix in part), before.granule if before else 0),
        )
