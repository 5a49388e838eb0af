"""The parts of a model's declarative specification, and the comparison of a checkpoint with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from bitqwen.errors import CheckpointError

Role = Literal["embedding", "head", "matrix", "norm", "bias"]

_SHOWN = 8  # names listed in an error before "and N more"


class TensorSpec(NamedTuple):
    """One tensor that a model of some configuration has; ``shape`` in numpy's order."""

    hf_name: str
    gguf_name: str
    shape: tuple[int, ...]
    role: Role
    optional: bool = False


def _listed(items: list[str]) -> str:
    more = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def validate(
    specs: Iterable[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    ignored: Iterable[str] = (),
) -> None:
    """Compares a checkpoint's tensors (HF names and shapes) with a specification.

    Args:
        specs: what is expected.
        shapes: what is there.
        source: the checkpoint, for messages.
        ignored: endings of names that may be present and are not read.

    Raises:
        CheckpointError: naming each tensor that is missing, unexpected or mis-shaped, with what was
            expected.
    """
    problems: list[str] = []
    expected = {spec.hf_name: spec for spec in specs}
    for name, spec in expected.items():
        if name not in shapes:
            if not spec.optional:
                problems.append(f"{name} is missing (expected {list(spec.shape)})")
        elif tuple(shapes[name]) != spec.shape:
            problems.append(f"{name} has shape {list(shapes[name])} (expected {list(spec.shape)})")
    endings = tuple(ignored)
    problems += [
        f"{name} is not part of this architecture"
        for name in shapes
        if name not in expected and not (endings and name.endswith(endings))
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit its configuration: {_listed(problems)}",
            hint="Check that config.json belongs to these weights and that no shard is missing.",
        )
