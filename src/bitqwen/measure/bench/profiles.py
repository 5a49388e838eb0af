"""Where a token's time goes: a table of the engine's operations, and a flame-like bar of the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# The transformer's parts, and the operations that each consists of.
_PARTS = {
    "attention": (
        "attention_norm",
        "query_key_value",
        "rope",
        "attention",
        "attention_quantize",
        "attention_output",
    ),
    "mlp": ("mlp_norm", "gate_up", "swiglu", "down"),
    "head": ("output_norm", "head"),
}
_WIDTH = 100  # characters of the bar


@dataclass(frozen=True)
class Profile:
    """One repetition of a test, measured operation by operation.

    Attributes:
        tokens: that it computed.
        seconds: by the clock on the wall, from outside.
        operations: as :class:`bitqwen.engine.OperationTime` has them, in the order of a step.
    """

    tokens: int
    seconds: float
    operations: tuple[dict[str, Any], ...]

    @property
    def outside(self) -> float:
        """Seconds that no operation accounts for: calls from Python, copies of logits."""
        return max(0.0, self.seconds - sum(float(operation["seconds"]) for operation in self.operations))

    def as_json(self) -> dict[str, Any]:
        """For scripts: totals, not per token."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "outside": self.outside,
            "operations": list(self.operations),
        }

    def table(self) -> list[str]:
        """Lines of a Markdown table, the operations in the order of a step."""
        lines = [
            "| operation | ms/token | share | GB/s | waiting | barriers/token |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for operation in self.operations:
            seconds = operation["seconds"]
            rate = f"{operation['bytes'] / seconds / 1e9:.1f}" if operation["bytes"] and seconds else "-"
            lines.append(
                f"| {operation['name']} | {seconds / self.tokens * 1e3:.3f} | {seconds / self.seconds:.1%} "
                f"| {rate} | {operation['waiting'] / self.seconds:.1%} "
                f"| {operation['barriers'] / self.tokens:.3g} |"
            )
        outside = self.outside
        lines.append(
            f"| outside | {outside / self.tokens * 1e3:.3f} | {outside / self.seconds:.1%} | - | - | - |"
        )
        return lines

    def bar(self, width: int = _WIDTH) -> list[str]:
        """Three lines of ``width`` characters: all, the transformer's parts, their operations."""
        by_name = {operation["name"]: float(operation["seconds"]) for operation in self.operations}
        parts: list[_Cell] = []
        leaves: list[_Cell] = []
        for part, names in _PARTS.items():
            cells = [_Cell(name, by_name.pop(name, 0.0)) for name in names]
            parts.append(_Cell(part, sum(cell.seconds for cell in cells)))
            leaves += cells
        rest = [*(_Cell(name, seconds) for name, seconds in by_name.items()), _Cell("outside", self.outside)]
        parts.append(_Cell("other", sum(cell.seconds for cell in rest)))
        whole = _Cell(f"a token, {self.seconds / self.tokens * 1e3:.2f} ms", self.seconds)
        return [_line([whole], width), _line(parts, width), _line([*leaves, *rest], width)]


class _Cell(NamedTuple):
    """A piece of a bar."""

    name: str
    seconds: float


def _line(cells: Sequence[_Cell], width: int) -> str:
    """Cells as wide as their times, each begun by a bar and named where its name fits."""
    total = sum(cell.seconds for cell in cells) or 1.0
    out, reached = "", 0.0
    for cell in cells:
        reached += cell.seconds
        space = round(width * reached / total) - len(out)
        if space > 0:
            share = f" {cell.seconds / total:.0%}" if len(cells) > 1 else ""
            text = next((t for t in (cell.name + share, cell.name) if len(t) < space), "")
            out += "|" + text.ljust(space - 1, "-")
    return out + "|"
