"""The schemes that ``--scheme`` names: which tensor type and method each matrix gets, and why one would.

A scheme names types by preference; a matrix takes the first whose block divides its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType, type_info
from bitqwen.models.specification import Role


@dataclass(frozen=True)
class TensorPlan:
    """How one tensor is stored: its type, and the name of a method in ``bitqwen.quant.METHODS``."""

    tensor_type: TensorType
    method: str


_F32 = TensorPlan(TensorType.F32, "plain")
_F16 = TensorPlan(TensorType.F16, "plain")
_Q8_0 = TensorPlan(TensorType.Q8_0, "plain")
_Q4_0 = TensorPlan(TensorType.Q4_0, "mse")
_WIDE = (TensorPlan(TensorType.Q6_K, "mse"), _Q8_0, _F16)
# What --embedding and --head accept.
_NAMED = {
    plan.tensor_type.name.lower(): plan
    for plan in (
        _F16,
        TensorPlan(TensorType.BF16, "plain"),
        _Q8_0,
        TensorPlan(TensorType.Q6_K, "mse"),
        TensorPlan(TensorType.Q5_K, "mse"),
        TensorPlan(TensorType.Q4_K, "mse"),
        _Q4_0,
        TensorPlan(TensorType.Q3_K, "mse"),
        TensorPlan(TensorType.Q2_K, "mse"),
        TensorPlan(TensorType.Q2_0, "mse"),
    )
}
# ``general.file_type`` of a model whose matrices are mostly of a type: llama.cpp's llama_ftype.
_FILE_TYPES = {
    TensorType.F32: 0,
    TensorType.F16: 1,
    TensorType.Q4_0: 2,
    TensorType.Q8_0: 7,
    TensorType.Q2_K: 10,
    TensorType.Q3_K: 11,  # Q3_K_S
    TensorType.Q4_K: 14,  # Q4_K_S
    TensorType.Q5_K: 16,  # Q5_K_S
    TensorType.Q6_K: 18,
    TensorType.TQ2_0: 37,
    TensorType.Q2_0: 41,
    # Our own, like the types.
    TensorType.V2: 20200,
    TensorType.V2_5: 20250,
    TensorType.V3: 20300,
}


def file_type(weights: Mapping[TensorType, int]) -> int:
    """``general.file_type`` for matrices with so many weights in each type: that of the most common one."""
    return _FILE_TYPES[max(weights, key=lambda tensor_type: weights[tensor_type])]


@dataclass(frozen=True)
class Scheme:
    """One way to store a model.

    Attributes:
        name: as ``--scheme`` takes it.
        body: plans for the block matrices, by preference.
        outer: plans for the embedding and the output head, by preference.
        when: one sentence on when to use it.
        needs_force: whether a source that was not trained for it is refused without ``--force``.
    """

    name: str
    body: tuple[TensorPlan, ...]
    outer: tuple[TensorPlan, ...]
    when: str
    needs_force: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the block matrices, scales included."""
        return type_info(self.body[0].tensor_type).bits_per_weight

    @property
    def file_type(self) -> int:
        """``general.file_type`` where no matrix had to take its second choice."""
        return _FILE_TYPES[self.body[0].tensor_type]

    def plan(
        self, role: Role, shape: tuple[int, ...], *, embedding: str | None = None, head: str | None = None
    ) -> TensorPlan:
        """How to store a tensor of that role and shape.

        Raises:
            UsageError: a type asked for does not exist, or no type's block divides the rows.
        """
        chosen = {"embedding": embedding, "head": head}.get(role)
        if chosen is not None:
            return _override(role, chosen, shape)
        if role in ("norm", "bias"):
            return _F32
        plans = self.body if role == "matrix" else self.outer
        for plan in plans:
            if shape[-1] % type_info(plan.tensor_type).block_size == 0:
                return plan
        raise UsageError(
            f"scheme '{self.name}' has no type for rows of {shape[-1]} values: a multiple of "
            f"{min(type_info(plan.tensor_type).block_size for plan in plans)} is needed",
            hint="Use another scheme; w4 and f16 take any model.",
        )


def _override(role: str, name: str, shape: tuple[int, ...]) -> TensorPlan:
    plan = _NAMED.get(name.lower())
    if plan is None:
        raise UsageError(
            f"--{role} {name!r} is not a type that can be written", hint="Allowed: " + ", ".join(_NAMED)
        )
    block = type_info(plan.tensor_type).block_size
    if shape[-1] % block:
        raise UsageError(
            f"--{role} {name}: rows of {shape[-1]} values do not fit its blocks of {block}",
            hint="Use q8_0, or f16.",
        )
    return plan


_SCHEMES = (
    Scheme(
        "f16",
        (_F16,),
        (_F16,),
        "Half precision: the reference to compare with, or the source of other conversions.",
    ),
    Scheme("q8_0", (_Q8_0, _F16), (_Q8_0, _F16), "Practically lossless at half the size of f16."),
    Scheme(
        "q6_k",
        (TensorPlan(TensorType.Q6_K, "mse"), _Q8_0, _F16),
        _WIDE,
        "6.6 bits: hardly told from the original.",
    ),
    Scheme(
        "q5_k",
        (TensorPlan(TensorType.Q5_K, "mse"), _Q8_0, _F16),
        _WIDE,
        "5.5 bits: between w4 and q6_k.",
    ),
    Scheme(
        "q4_0",
        (TensorPlan(TensorType.Q4_0, "plain"), _F16),
        _WIDE,
        "llama.cpp's plain 4 bits, by its reference rule; for programs that read nothing newer.",
    ),
    Scheme(
        "w4",
        (TensorPlan(TensorType.Q4_K, "mse"), _Q4_0, _F16),
        _WIDE,
        "The default: 4 bits with fitted scales and minima; close to the original.",
    ),
    Scheme(
        "q3_k",
        (TensorPlan(TensorType.Q3_K, "mse"), _Q4_0, _F16),
        _WIDE,
        "3.4 bits in llama.cpp's type, better chosen: good with --calibration.",
    ),
    Scheme(
        "v3",
        (TensorPlan(TensorType.V3, "lloyd"), _Q4_0, _F16),
        _WIDE,
        "3 bits, as pairs of weights from a codebook; read by bitqwen only.",
    ),
    Scheme(
        "q2_k",
        (TensorPlan(TensorType.Q2_K, "mse"), _Q4_0, _F16),
        _WIDE,
        "2.6 bits in llama.cpp's type, better chosen: usable with --calibration.",
    ),
    Scheme(
        "v2.5",
        (TensorPlan(TensorType.V2_5, "lloyd"), _Q4_0, _F16),
        _WIDE,
        "2.5 bits, as pairs of weights from a codebook: half the error of w2; read by bitqwen only.",
    ),
    Scheme(
        "w2",
        (TensorPlan(TensorType.Q2_0, "mse"), _Q4_0, _F16),
        _WIDE,
        "2 bits with fitted scales: smallest, and clearly damaged without calibration; for experiments.",
    ),
    Scheme(
        "v2",
        (TensorPlan(TensorType.V2, "lloyd"), _Q4_0, _F16),
        _WIDE,
        "2 bits, as pairs of weights from a codebook: less error than w2, and smaller; read by bitqwen only.",
    ),
    Scheme(
        "ternary",
        (TensorPlan(TensorType.TQ2_0, "ternary"), TensorPlan(TensorType.Q2_0, "ternary"), _Q4_0, _F16),
        _WIDE,
        "Three levels with one fitted scale a group: for models trained that way; others turn to gibberish.",
    ),
    Scheme(
        "bitnet",
        (TensorPlan(TensorType.TQ2_0, "absmean"), TensorPlan(TensorType.Q2_0, "absmean")),
        _WIDE,
        "One absmean scale a matrix, as BitNet b1.58 rounds: only for models trained that way.",
        needs_force=True,
    ),
)
_BY_NAME = {scheme.name: scheme for scheme in _SCHEMES}


def names() -> list[str]:
    """Names of all schemes, widest first."""
    return list(_BY_NAME)


def get(name: str) -> Scheme:
    """A scheme by name.

    Raises:
        UsageError: there is no such scheme.
    """
    if name not in _BY_NAME:
        raise UsageError(f"scheme {name!r} is not known", hint="Allowed: " + ", ".join(_BY_NAME) + ".")
    return _BY_NAME[name]
