"""A conversion's receipt: what quantising did to the model, in a few numbers that stay with the file."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitqwen.gguf import GGUFFile
from bitqwen.gguf.rewrite import add_metadata
from bitqwen.texts import load_texts, packaged_names

from .evaluation import Report, TextResult
from .runner import EngineOptions, measure_texts

DEFAULT_CHUNKS = 4

_PREFIX = "bitqwen.receipt."

# Of the worse of the domains' mean KL divergence, in nats: what is at most that is called so. docs/quality.md
# shows what these do to answers.
VERDICTS = (
    (0.06, "faithful", "answers like the original"),
    (0.35, "usable", "mostly answers like the original; now and then it is noticeably worse"),
    (1.2, "degraded", "often wrong where the original is right"),
    (float("inf"), "gibberish", "it has lost what it knew: take more bits, or calibrate"),
)


@dataclass(frozen=True)
class Domain:
    """What was measured on one text.

    Attributes:
        kl: mean KL divergence from the reference, in nats a token.
        kl_low: lower end of its 95 % confidence interval.
        kl_high: upper end.
        same_top: share of tokens where both find the same token likeliest.
        perplexity_ratio: the model's perplexity over the reference's.
        tokens: how many were scored.
    """

    kl: float
    kl_low: float
    kl_high: float
    same_top: float
    perplexity_ratio: float
    tokens: int


@dataclass(frozen=True)
class Receipt:
    """What a file is, beside what it was made from.

    Attributes:
        domains: by the text's name: prose, code.
        reference: what it was compared with.
        nbytes: the file's size.
        bits_per_weight: of all tensors, from the bytes they take.
        seconds: how long measuring took.
    """

    domains: dict[str, Domain]
    reference: str
    nbytes: int
    bits_per_weight: float
    seconds: float

    @property
    def verdict(self) -> str:
        """One of faithful, usable, degraded and gibberish."""
        return _verdict(self.domains)[1]

    @property
    def meaning(self) -> str:
        """The verdict in a sentence."""
        return _verdict(self.domains)[2]

    def to_metadata(self) -> dict[str, Any]:
        """Keys ``bitqwen.receipt.*`` and their values."""
        out: dict[str, Any] = {
            f"{_PREFIX}verdict": self.verdict,
            f"{_PREFIX}reference": self.reference,
            f"{_PREFIX}bits_per_weight": self.bits_per_weight,
            f"{_PREFIX}seconds": self.seconds,
            f"{_PREFIX}domains": list(self.domains),
        }
        for name, domain in self.domains.items():
            out |= {f"{_PREFIX}{name}.{key}": value for key, value in vars(domain).items()}
        return out


def take(
    path: Path,
    reference: Path,
    *,
    source: str,
    chunks: int = DEFAULT_CHUNKS,
    engine: EngineOptions | None = None,
    progress: Report | None = None,
) -> Receipt:
    """Measures a file against its source on the two texts that come with bitqwen.

    Args:
        path: the file.
        reference: the source, as a GGUF file.
        source: what the receipt calls it.
        chunks: of 512 tokens, of each text.
        engine: how the models are opened.
        progress: called before each chunk and after the last.

    Raises:
        ModelFileError, CheckpointError, UnsupportedModelError, ResourceError: a model cannot be used.
    """
    started = time.perf_counter()
    results = measure_texts(
        path,
        load_texts(packaged_names()),
        reference=reference,
        chunks=chunks,
        engine=engine,
        progress=progress,
    )
    file = GGUFFile(path)
    weights = sum(_count(tensor.shape) for tensor in file.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
    return Receipt(
        domains={result.name: _domain(result) for result in results},
        reference=source,
        nbytes=path.stat().st_size,
        bits_per_weight=8 * nbytes / weights,
        seconds=time.perf_counter() - started,
    )


def attach(path: Path, receipt: Receipt) -> None:
    """Writes a receipt into its file's metadata.

    Raises:
        ModelFileError, ResourceError: the file cannot be read or written.
    """
    add_metadata(path, receipt.to_metadata())


def read(metadata: Mapping[str, Any], nbytes: int) -> Receipt | None:
    """The receipt in a file's metadata, if there is a whole one.

    Args:
        metadata: the file's.
        nbytes: its size.
    """
    try:
        return Receipt(
            domains={
                str(name): Domain(
                    **{key: metadata[f"{_PREFIX}{name}.{key}"] for key in Domain.__annotations__}
                )
                for name in metadata[f"{_PREFIX}domains"]
            },
            reference=str(metadata[f"{_PREFIX}reference"]),
            nbytes=nbytes,
            bits_per_weight=float(metadata[f"{_PREFIX}bits_per_weight"]),
            seconds=float(metadata[f"{_PREFIX}seconds"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def verdict_of(kl: float) -> str:
    """The verdict for a mean KL divergence, in nats a token."""
    return _verdict_for(kl)[1]


def _verdict(domains: Mapping[str, Domain]) -> tuple[float, str, str]:
    return _verdict_for(max((domain.kl for domain in domains.values()), default=float("inf")))


def _verdict_for(kl: float) -> tuple[float, str, str]:
    return next((each for each in VERDICTS if kl <= each[0]), VERDICTS[-1])


def _domain(result: TextResult) -> Domain:
    divergence = result.divergence
    assert divergence is not None
    return Domain(
        kl=divergence.kl.value,
        kl_low=divergence.kl.low,
        kl_high=divergence.kl.high,
        same_top=divergence.same_top.value,
        perplexity_ratio=divergence.perplexity_ratio,
        tokens=divergence.tokens,
    )


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
