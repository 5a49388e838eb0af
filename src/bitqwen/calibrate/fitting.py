"""From a budget of bytes to a plan: sensitivities, the loss of each type on each matrix, and the best mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bitqwen.checkpoints import Checkpoint
from bitqwen.convert.plan import Job, plan_tensors
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFWriter, TensorType, keys, tensor_bytes, type_info
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Recipe, Statistics, TensorPlan, quantize, schemes
from bitqwen.quant.budget import Allocation, Option, allocate
from bitqwen.quant.vector_sweeps import is_vector_type

from .backward import EMBEDDING, HEAD
from .calibration import Calibration
from .encoder import decoded
from .moments import noise_weights
from .sensitivity import Sensitivity, sensitivities
from .transformer import Matrix

# What a matrix may be stored as, of those whose block divides its rows.
_TYPES = (
    TensorPlan(TensorType.V2, "lloyd"),
    TensorPlan(TensorType.V2_5, "lloyd"),
    TensorPlan(TensorType.V3, "lloyd"),
    TensorPlan(TensorType.Q2_K, "mse"),
    TensorPlan(TensorType.Q3_K, "mse"),
    TensorPlan(TensorType.Q4_K, "mse"),
    TensorPlan(TensorType.Q5_K, "mse"),
    TensorPlan(TensorType.Q6_K, "mse"),
    TensorPlan(TensorType.Q2_0, "mse"),
    TensorPlan(TensorType.Q4_0, "mse"),
    TensorPlan(TensorType.Q8_0, "plain"),
)
_SAMPLE_ROWS = 96  # of each matrix, to see what a type loses on it
_TOKENS = 2048
# The header: tokenizer, metadata and names. Qwen2.5's is 6 MB.
_SPARE = 64 << 10
_NEIGHBOURS = (0.85, 1.15)

# Error feedback and descent leave about so much of what a fit loses on texts not calibrated on
# (docs/quantising.md).
_SWEPT, _SWEPT_VECTORS = 0.82, 0.75


@dataclass(frozen=True)
class Fitting:
    """A plan for a budget.

    Attributes:
        plans: how to store each tensor, by its Hugging Face name.
        nbytes: of the whole file, about; never more than the budget.
        loss: the expected KL divergence from the source, in nats; a guide, which a receipt replaces.
        sensitivity: KL divergence for each share of a matrix's outputs that is lost, by its name.
        neighbours: budgets around it, and the loss to expect there; None where nothing fits.
        importance: of the inputs of the output head, float32 [hidden], by its Hugging Face name; what the
            loss was measured with, and the head is to be fitted with.
        first_weights: how much a chunk's first token counts for each matrix, for the calibration.
    """

    plans: dict[str, TensorPlan]
    nbytes: int
    loss: float
    sensitivity: dict[str, float]
    neighbours: dict[int, float | None]
    importance: dict[str, Matrix]
    first_weights: dict[str, float]


class Budgets:
    """What every way to store each matrix costs, measured once: for any number of budgets.

    Attributes:
        sensitivity: of every matrix, by its Hugging Face name.
        options: ways to store each matrix, by the same names.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        *,
        calibration: Calibration | None = None,
        sensitivity: Mapping[str, Sensitivity] | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        threads: int = 0,
    ) -> None:
        """Measures.

        Args:
            checkpoint: the source.
            config: its configuration.
            calibration: the text to measure on, if not the default one, and how the conversion will quantise.
            sensitivity: if it has been measured before.
            progress: called with what is done, and how much of it.
            threads: 0 for one per core.
        """
        jobs = plan_tensors(checkpoint, config, schemes.get("w4"))
        matrices = {job.spec.hf_name: job for job in jobs if job.spec.role in ("matrix", "embedding", "head")}
        self._fixed = _header_bytes(checkpoint, config, jobs) + sum(
            tensor_bytes(job.plan.tensor_type, job.spec.shape)
            for job in jobs
            if job.spec.hf_name not in matrices
        )
        if sensitivity is None:
            ids = (calibration or Calibration()).ids(checkpoint)
            sensitivity = sensitivities(
                checkpoint,
                config,
                ids[: max(1, _TOKENS // ids.shape[1])],
                progress=(lambda done, total: progress("sensitivity", done, total)) if progress else None,
            )
        found = dict(sensitivity)
        tied = not any(job.spec.role == "head" for job in jobs)
        if tied and HEAD in found:  # stored twice, and written once for both uses
            found[EMBEDDING] = found[HEAD]._replace(nats=found[HEAD].nats + found[EMBEDDING].nats)
        self.sensitivity = found
        self._head = EMBEDDING if tied else HEAD
        swept = (
            calibration is not None
            and calibration.importance is None
            and Recipe.parse(calibration.recipe).sweeps
        )
        self.options: dict[str, list[Option]] = {}
        for place, (name, job) in enumerate(matrices.items()):
            if progress:
                progress("types", place, len(matrices))
            looked_up = job.spec.role == "embedding" and not tied
            self.options[name] = _options(
                checkpoint,
                job.source,
                job.spec.shape,
                found[name],
                swept and not looked_up,
                looked_up,
                threads,
            )

    def room(self, budget: int) -> int:
        """The bytes that a file of a size has for matrices."""
        return budget - self._fixed - _SPARE

    def fit(self, budget: int) -> Fitting:
        """The types with which the model is best at a size of the whole file, in bytes.

        Raises:
            UsageError: nothing fits; says what the least is.
        """
        room = self.room(budget)
        chosen = _allocate(self.options, room, budget)
        neighbours: dict[int, float | None] = {}
        for factor in _NEIGHBOURS:
            other = int(budget * factor)
            try:
                neighbours[other] = allocate(self.options, room + other - budget).loss
            except UsageError:
                neighbours[other] = None
        return Fitting(
            plans=chosen.plans,
            nbytes=chosen.nbytes + self._fixed,
            loss=chosen.loss,
            sensitivity={name: each.nats for name, each in self.sensitivity.items()},
            neighbours=neighbours,
            importance={self._head: noise_weights(self.sensitivity[self._head].importance)},
            first_weights={name: each.first_weight for name, each in self.sensitivity.items()},
        )


def fit_to_size(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    budget: int,
    *,
    calibration: Calibration | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    threads: int = 0,
) -> Fitting:
    """Finds the types with which a model is best at a size.

    Args:
        checkpoint: the source.
        config: its configuration.
        budget: bytes of the whole file.
        calibration: the text to measure on, if not the default one.
        progress: called with what is done, and how much of it.
        threads: 0 for one per core.

    Raises:
        UsageError: nothing fits; says what the least is.
    """
    budgets = Budgets(checkpoint, config, calibration=calibration, progress=progress, threads=threads)
    return budgets.fit(budget)


def weights_to_bytes(checkpoint: Checkpoint, config: Qwen2Config, bits: float) -> int:
    """The size of a file whose tensors take so many bits per weight."""
    jobs = plan_tensors(checkpoint, config, schemes.get("w4"))
    weights = sum(job.weights for job in jobs)
    return int(weights * bits / 8) + _header_bytes(checkpoint, config, jobs) + _SPARE


def _header_bytes(checkpoint: Checkpoint, config: Qwen2Config, jobs: list[Job]) -> int:
    writer = GGUFWriter("unwritten")
    writer.add_metadata(config.to_gguf_metadata())
    writer.add_metadata(checkpoint.tokenizer().padded(config.vocab_size).to_gguf_metadata())
    writer.add_metadata({keys.CHAT_TEMPLATE: checkpoint.chat_template or ""})
    return writer.nbytes + sum(2 * len(job.spec.gguf_name) + 72 for job in jobs)


def _allocate(options: dict[str, list[Option]], room: int, budget: int) -> Allocation:
    try:
        return allocate(options, room)
    except UsageError as error:
        least = sum(min(option.nbytes for option in each) for each in options.values())
        raise UsageError(
            f"this model does not fit into {budget:,} bytes: {least + budget - room:,} are the least",
            hint=error.hint,
        ) from error


def _options(
    checkpoint: Checkpoint,
    source: str,
    shape: tuple[int, ...],
    sensitivity: Sensitivity,
    swept: bool,
    looked_up: bool,
    threads: int,
) -> list[Option]:
    sample = _sample(checkpoint, source, shape)
    weight = noise_weights(sensitivity.importance)
    # Rows that are looked up come one at a time; those of a matrix are outputs, all at once.
    outputs = 1 if looked_up else shape[0]
    options = []
    for plan in _TYPES:
        if shape[1] % type_info(plan.tensor_type).block_size:
            continue
        encoded = quantize(
            sample, plan.tensor_type, method=plan.method, statistics=Statistics(weight), threads=threads
        )
        lost = sample - decoded(encoded, plan.tensor_type, sample.shape)
        rest = float((np.square(lost) * weight).sum(dtype=np.float64)) / len(sample) * outputs
        rest /= sensitivity.energy or 1.0
        if swept and plan.method != "plain":
            rest *= _SWEPT_VECTORS if is_vector_type(plan.tensor_type) else _SWEPT
        options.append(Option(plan, tensor_bytes(plan.tensor_type, shape), sensitivity.nats * rest))
    return options


def _sample(checkpoint: Checkpoint, source: str, shape: tuple[int, ...]) -> Matrix:
    """Rows from all of a matrix, in a few runs."""
    runs = 8
    length = max(1, _SAMPLE_ROWS // runs)
    if shape[0] <= _SAMPLE_ROWS:
        return checkpoint.read(source)
    begins = np.linspace(0, shape[0] - length, runs).astype(int)
    return np.concatenate([checkpoint.read(source, int(b), int(b) + length) for b in begins])
