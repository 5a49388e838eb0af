"""Where the time of a model's steps goes, operation by operation."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

from bitqwen import _native
from bitqwen.errors import UsageError


@dataclass(frozen=True)
class OperationTime:
    """One operation of the transformer, over all layers and steps that were measured.

    Attributes:
        name: ``embedding``, ``attention_norm`` (residual, norm and quantisation), ``query_key_value``,
            ``rope`` (biases, rotation, writing the KV cache), ``attention``, ``attention_quantize``,
            ``attention_output``, ``mlp_norm``, ``gate_up``, ``swiglu`` (with quantisation), ``down``,
            ``output_norm``, ``screen`` (a screened head's both passes) or ``head``.
        calls: how often it ran.
        seconds: that it took, by the clock on the wall.
        waiting: seconds of these in which the calling thread had no work left and waited for the others.
        barriers: times that it waited.
        bytes: of packed weights and KV cache that it read, and of cache that it wrote; activations, which
            stay in the processor's caches, are not counted. Weights count once for each step, however
            many tokens it has.
    """

    name: str
    calls: int
    seconds: float
    waiting: float
    barriers: int
    bytes: int

    @property
    def bandwidth(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


class Profile:
    """Measures a model's steps while a ``with`` block runs; made by :meth:`bitqwen.engine.Model.profile`.

    The measuring itself costs some 30 looks at the clock a layer, about one microsecond.

    Attributes:
        steps: forward passes that ran in the block: tokens computed at once are one step.
        tokens: tokens that they computed.
        operations: what they consist of, in the order of a step.
    """

    def __init__(self, native: _native.Model) -> None:
        self._native = native
        self.steps = 0
        self.tokens = 0
        self.operations: tuple[OperationTime, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of all operations together."""
        return sum(operation.seconds for operation in self.operations)

    @property
    def bytes(self) -> int:
        """Bytes of all operations together."""
        return sum(operation.bytes for operation in self.operations)

    def operation(self, name: str) -> OperationTime:
        """One operation by its name.

        Raises:
            UsageError: no operation is called that, or nothing was measured yet.
        """
        for operation in self.operations:
            if operation.name == name:
                return operation
        names = ", ".join(operation.name for operation in self.operations) or "none, before the block ends"
        raise UsageError(f"there is no operation '{name}' in this profile", hint=f"There are: {names}.")

    def __enter__(self) -> Profile:
        self._native.start_profile()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        measured = self._native.stop_profile()
        self.steps = measured["steps"]
        self.tokens = measured["tokens"]
        self.operations = tuple(OperationTime(**operation) for operation in measured["operations"])

    def __str__(self) -> str:
        """A table: milliseconds a step, share, bandwidth and waiting of each operation."""
        title = f"{'operation':<20}{'ms/step':>9}{'share':>8}{'GB/s':>8}{'waiting':>9}{'barriers':>10}"
        steps, seconds = max(self.steps, 1), self.seconds or 1.0
        return "\n".join(
            [
                title,
                *(
                    f"{operation.name:<20}{operation.seconds / steps * 1e3:>9.3f}"
                    f"{operation.seconds / seconds:>8.1%}{operation.bandwidth / 1e9:>8.1f}"
                    f"{operation.waiting / seconds:>9.1%}{operation.barriers / steps:>10.0f}"
                    for operation in self.operations
                ),
            ]
        )
