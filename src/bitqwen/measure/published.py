"""What the schemes lost where it was measured: on one model. ``benchmarks/schemes.py`` writes the data.

Other sizes lose other amounts, and these numbers say nothing about them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bitqwen.models.qwen2 import Qwen2Config

from .receipt import verdict_of

PATH = Path(__file__).with_name("published.json")


@dataclass(frozen=True)
class Measured:
    """A scheme on the measured model.

    Attributes:
        kl: mean KL divergence from the source, in nats a token, by text.
        same_top: share of tokens where both find the same token likeliest, by text.
        nbytes: the file's size.
        date: of the measurement, YYYY-MM-DD.
    """

    kl: dict[str, float]
    same_top: dict[str, float]
    nbytes: int
    date: str

    @property
    def worst(self) -> float:
        """The KL divergence of the text that suffers most."""
        return max(self.kl.values())

    @property
    def verdict(self) -> str:
        """As a receipt has it."""
        return verdict_of(self.worst)


@dataclass(frozen=True)
class Published:
    """All of them.

    Attributes:
        model: the name of the model.
        hidden_size: the model's, by which it is told from other sizes.
        layers: the same.
        settings: how it was measured, in words.
        schemes: by the scheme's name.
    """

    model: str
    hidden_size: int
    layers: int
    settings: str
    schemes: dict[str, Measured]

    def is_of(self, config: Qwen2Config) -> bool:
        """Whether a model has the measured one's size."""
        return (config.hidden_size, config.layers) == (self.hidden_size, self.layers)

    @property
    def dates(self) -> str:
        """When they were measured, in words."""
        return ", ".join(sorted({each.date for each in self.schemes.values()}))

    def in_words(self, scheme: str) -> str:
        """What was measured of a scheme."""
        found = self.schemes.get(scheme)
        if found is None:
            return "not measured"
        return " / ".join(f"{kl:.3g}" for kl in found.kl.values()) + f", {found.verdict}"

    def as_json(self, scheme: str) -> dict[str, Any] | None:
        """The same in JSON's types; None where there is nothing."""
        found = self.schemes.get(scheme)
        return None if found is None else {**asdict(found), "verdict": found.verdict}


@cache
def load() -> Published:
    """The data that come with bitqwen."""
    found = json.loads(PATH.read_text(encoding="utf-8"))
    schemes = {name: Measured(**each) for name, each in found.pop("schemes").items()}
    return Published(**found, schemes=schemes)
