"""``convert --fit SIZE`` and ``--bits B``: from a size to a type for each tensor."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bitqwen.cli import terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.calibrate import Calibration, Fitting

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
_MOST_BITS = 16.0


def parse_size(text: str) -> int:
    """Bytes of a size such as 700MB or 1.5GiB.

    Raises:
        UsageError: it is none.
    """
    found = _SIZE.fullmatch(text)
    if found is None or found[2].upper() not in _UNITS:
        raise UsageError(f"{text!r} is not a size", hint="For example 700MB, 1.5GB or 2GiB.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def plans(
    source: str,
    size: str | None,
    bits: float | None,
    calibration: Calibration | None,
    *,
    quiet: bool,
    threads: int | None,
    **hub: Any,
) -> Fitting:
    """The types with which a model is best at a size or at so many bits per weight.

    Args:
        source: the checkpoint.
        size: of the whole file, or None.
        bits: per weight, or None.
        calibration: how the conversion will quantise.
        quiet: say nothing.
        threads: for the quantisers.
        **hub: revision, token and offline.

    Raises:
        UsageError: the size is none, or too small for the model.
    """
    from bitqwen.calibrate import fit_to_size, weights_to_bytes
    from bitqwen.checkpoints import open_checkpoint
    from bitqwen.models.registry import config_from_hf

    checkpoint = open_checkpoint(source, **hub)
    config = config_from_hf(checkpoint.config, source=checkpoint.provenance.source)
    config.validate(checkpoint.shapes(), source=checkpoint.provenance.source)
    if bits is not None:
        if not 1.0 <= bits <= _MOST_BITS:
            raise UsageError(f"--bits {bits:g}: allowed are 1 to {_MOST_BITS:g}")
        budget = weights_to_bytes(checkpoint, config, bits)
    else:
        budget = parse_size(size or "")
    told = ""

    def advance(what: str, done: int, total: int) -> None:
        nonlocal told
        if what != told:
            terminal.say(f"measuring {what}", quiet=quiet)
            told = what

    found = fit_to_size(
        checkpoint, config, budget, calibration=calibration, progress=advance, threads=threads or 0
    )
    for line in summary(found, budget):
        terminal.say(line, quiet=quiet)
    return found


def summary(found: Fitting, budget: int) -> list[str]:
    """What the budget gives, and what other ones would."""
    types: dict[str, int] = {}
    for plan in found.plans.values():
        types[plan.tensor_type.name] = types.get(plan.tensor_type.name, 0) + 1
    mix = ", ".join(f"{name} {count}" for name, count in sorted(types.items()))
    lines = [
        f"{terminal.size(budget)}: {mix}; a file of {terminal.size(found.nbytes)}; "
        f"KL divergence to expect: {found.loss:.3f}"
    ]
    for size, loss in found.neighbours.items():
        if loss is None:
            lines.append(f"{terminal.size(size)} would be too small for this model")
        else:
            lines.append(f"{terminal.size(size)} would give {loss:.3f}")
    return lines
