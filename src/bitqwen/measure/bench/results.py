"""What came out: samples, their spread, and what they mean against the machine's own limits."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any

from .plan import Side, Test
from .profiles import Profile


@dataclass
class Row:
    """One test on one side.

    Attributes:
        side: what ran.
        test: what it did.
        seconds: of each repetition.
        joules: of each repetition, where they could be read.
        least_joules: below which their sum says nothing, because of the counter's coarse steps.
        facts: what the engine says of itself.
        profile: one more repetition, operation by operation, if it was asked for.
        about: what the file says of itself, as :func:`bitqwen.measure.bench.models.about` gives it.
        bandwidth: the highest read bandwidth that this run measured at these threads, bytes a second.
        int8_rate: the highest int8 multiply-add rate, a second; 0 if unknown.
    """

    side: Side
    test: Test
    seconds: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)
    least_joules: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    profile: Profile | None = None
    about: dict[str, Any] = field(default_factory=dict)
    bandwidth: float = 0.0
    int8_rate: float = 0.0

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of each repetition."""
        return [self.test.tokens / each for each in self.seconds]

    @property
    def mean(self) -> float:
        """Mean of the repetitions' tokens a second, as llama-bench takes it."""
        return statistics.fmean(self.speeds)

    @property
    def sigma(self) -> float:
        """Standard deviation of one repetition; not a number for a single one, which has no spread."""
        return statistics.stdev(self.speeds) if len(self.speeds) > 1 else math.nan

    @property
    def best(self) -> float:
        """The fastest repetition's tokens a second."""
        return max(self.speeds)

    @property
    def bytes_per_token(self) -> float | None:
        """Weights and KV cache that decoding a token must read, on average over the test; ours only."""
        if self.test.kind != "tg" or "decode_bytes" not in self.facts:
            return None
        # Token i sees depth + i positions before it.
        positions = self.test.depth + (self.test.tokens - 1) / 2
        return float(self.facts["decode_bytes"] + positions * self.facts["kv_bytes"])

    @property
    def read_rate(self) -> float | None:
        """Bytes a second that decoding read, at its mean speed."""
        return None if self.bytes_per_token is None else self.bytes_per_token * self.mean

    @property
    def bandwidth_share(self) -> float | None:
        """``read_rate`` over the highest bandwidth measured in the same run."""
        return self.read_rate / self.bandwidth if self.read_rate and self.bandwidth else None

    @property
    def int8_share(self) -> float | None:
        """Prefill's multiply-adds in the layers' matrices over the int8 peak of the same run."""
        if self.test.kind != "pp" or "body_macs" not in self.facts or not self.int8_rate:
            return None
        return float(self.facts["body_macs"]) * self.mean / self.int8_rate

    @property
    def joules_per_token(self) -> float | None:
        """Mean joules a token; None where the counters cannot be read, or are too coarse for this test."""
        if not self.joules or sum(self.joules) < self.least_joules:
            return None
        return statistics.fmean(self.joules) / self.test.tokens

    @property
    def energy_reason(self) -> str:
        """Why there are no joules a token; empty if there are."""
        if self.joules_per_token is not None:
            return ""
        if self.joules:
            least = f"its counter's steps are coarse, below {self.least_joules:.0f} J it says nothing"
            return f"{least}; give a larger -n"
        return str(self.facts.get("energy_reason", ""))

    def as_json(self) -> dict[str, Any]:
        """For scripts; speeds always come with their spread."""
        return {
            "engine": self.side.engine,
            "version": self.facts.get("version"),
            "model": self.side.model.name,
            "model_bytes": self.side.model.stat().st_size,
            "bits_per_weight": self.about.get("bits_per_weight"),
            "quality": self.about.get("quality"),
            "threads": self.side.threads,
            "isa": self.facts.get("isa"),
            "kv": self.side.kv,
            "head": self.facts.get("head"),
            "placement": self.facts.get("placement"),
            "peer": self.side.peer,
            "test": self.test.name,
            "kind": self.test.kind,
            "tokens": self.test.tokens,
            "depth": self.test.depth,
            "tokens_per_second": self.mean,
            "sigma": None if math.isnan(self.sigma) else self.sigma,
            "best": self.best,
            "samples": self.speeds,
            "bytes_per_token": self.bytes_per_token,
            "weight_bytes": self.facts.get("decode_bytes"),
            "macs_per_token": self.facts.get("body_macs" if self.test.kind == "pp" else "decode_macs"),
            "gb_per_second": None if self.read_rate is None else self.read_rate / 1e9,
            "bandwidth_share": self.bandwidth_share,
            "int8_share": self.int8_share,
            "joules_per_token": self.joules_per_token,
            "profile": self.profile and self.profile.as_json(),
            "energy": self.facts.get("energy") or None,
            "energy_reason": self.energy_reason or None,
        }


@dataclass
class Report:
    """Everything of one run.

    Attributes:
        machine: as :func:`bitqwen.measure.machine.describe` gives it.
        rows: in the order of the sides and tests.
        bandwidth: read bandwidth in bytes a second, all passes, by threads.
        int8_rate: int8 multiply-adds a second, all passes, by threads.
    """

    machine: dict[str, Any]
    rows: list[Row]
    bandwidth: dict[int, list[float]] = field(default_factory=dict)
    int8_rate: dict[int, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """One document: the machine, its measured limits, the rows."""
        return {
            "bitqwen_bench": 1,
            "machine": self.machine,
            "read_gb_per_second": {
                str(threads): [value / 1e9 for value in values] for threads, values in self.bandwidth.items()
            },
            "int8_gmac_per_second": {
                str(threads): [value / 1e9 for value in values] for threads, values in self.int8_rate.items()
            },
            "rows": [row.as_json() for row in self.rows],
        }
