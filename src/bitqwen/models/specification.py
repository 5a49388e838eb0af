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
    specs: Mapping[str, TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    source: str,
    ignored: Iterable[str] = (),
) -> None:
    """Compares a checkpoint's tensors with a specification, in either spelling of the names.

    Args:
        specs: what is expected, by name.
        shapes: what is there, by name.
        source: the checkpoint, for messages.
        ignored: endings of names that may be present and are not read.

    Raises:
        CheckpointError: naming each tensor that is missing, unexpected or mis-shaped, with what was
            expected.
    """
    problems: list[str] = []
    for name, spec in specs.items():
        if name not in shapes:
            if not spec.optional:
                problems.append(f"{name} is missing (expected {list(spec.shape)})")
        elif tuple(shapes[name]) != spec.shape:
            problems.append(f"{name} has shape {list(shapes[name])} (expected {list(spec.shape)})")
    endings = tuple(ignored)
    problems += [
        f"{name} is not part of this architecture"
        for name in shapes
        if name not in specs and not (endings and name.endswith(endings))
    ]
    if problems:
        allowed = f" Further tensors may only end in {', '.join(endings)}." if endings else ""
        raise CheckpointError(
            f"{source} does not fit its configuration: {_listed(problems)}",
            hint=f"Check that the configuration belongs to these weights and no file is missing.{allowed}",
        )
