"""What a conversion will write: every tensor's type, and where its values come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bitqwen import quant
from bitqwen.checkpoints import Checkpoint
from bitqwen.errors import UsageError
from bitqwen.gguf import TensorType
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.specification import TensorSpec
from bitqwen.quant import Scheme, TensorPlan

from .tying import EMBEDDING, HEAD, shared_embedding


class Job(NamedTuple):
    """One tensor to write: ``source`` is the tensor to read, by its Hugging Face name."""

    spec: TensorSpec
    plan: TensorPlan
    source: str

    @property
    def weights(self) -> int:
        """How many values it has."""
        count = 1
        for size in self.spec.shape:
            count *= size
        return count


def plan_tensors(
    checkpoint: Checkpoint,
    config: Qwen2Config,
    scheme: Scheme,
    *,
    embedding: str | None = None,
    head: str | None = None,
    plans: Mapping[str, TensorPlan] | None = None,
) -> list[Job]:
    """The tensors of the file, in its order.

    Args:
        checkpoint: the source, valid for ``config``.
        config: its configuration.
        scheme: how tensors are stored.
        embedding: the embedding's type, instead of the scheme's.
        head: the head's type, instead of the scheme's.
        plans: how to store single tensors, by their Hugging Face names, instead of all this.

    Raises:
        UsageError: a type that does not exist or does not fit; a head's type for a model that has no head
            of its own.
    """
    present = set(checkpoint.names())
    shared = shared_embedding(checkpoint, config)
    if head is not None and (shared is not None or HEAD not in present):
        raise UsageError(
            f"--head {head}: this model's head is its embedding, stored once",
            hint=f"Use --embedding {head}, which holds for both.",
        )
    jobs = []
    for spec in config.tensors():
        if spec.hf_name not in present or (shared and spec.hf_name == HEAD):
            continue
        plan = (plans or {}).get(spec.hf_name)
        if plan is None:
            plan = scheme.plan(spec.role, spec.shape, embedding=embedding, head=head)
        jobs.append(Job(spec, plan, shared if shared and spec.hf_name == EMBEDDING else spec.hf_name))
    return jobs


def head_of(jobs: Sequence[Job]) -> Job:
    """The matrix that logits come from: the head, or the embedding where that is one."""
    roles = {job.spec.role: job for job in jobs}
    return roles.get("head") or roles["embedding"]


def file_type(jobs: list[Job]) -> int:
    """``general.file_type``: that of the type which most weights of the block matrices have."""
    weights: dict[TensorType, int] = {}
    for job in jobs:
        if job.spec.role == "matrix":
            tensor_type = job.plan.tensor_type
            weights[tensor_type] = weights.get(tensor_type, 0) + job.weights
    return quant.file_type(weights)
