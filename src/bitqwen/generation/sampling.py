"""How the next token is chosen: the settings that users give, and the native sampler that they make.

The settings act in this order, which is that of transformers and vLLM, for which models publish their
recommended values: logit bias, repetition penalty, presence and frequency penalty, allowed tokens,
temperature, top-k, top-p, min-p. (llama.cpp applies the temperature last.)
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen._native import Sampler

_MAX_SEED = (1 << 64) - 1


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one generation. The defaults are Qwen2.5's published ones.

    Attributes:
        temperature: divides the logits; 0 takes the best token always.
        top_k: keep the k best tokens; 0 keeps all.
        top_p: keep the fewest best tokens whose probabilities reach top_p; 1 keeps all.
        min_p: keep tokens at least min_p times as probable as the best; 0 keeps all.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that occur in the
            prompt or the generated text; 1 is none.
        presence_penalty: subtracted from the logit of each token that occurs in the generated text.
        frequency_penalty: subtracted once for each of its occurrences there.
        penalty_window: the penalties look at this many latest tokens; 0 means all.
        logit_bias: token id -> number added to its logit; ``-inf`` forbids the token.
        seed: the same seed gives the same text, whatever else runs; ``None`` draws one.

    Raises:
        UsageError: a value outside its range; the message names the range.
    """

    temperature: float = 0.7
    top_k: int = 20
    top_p: float = 0.8
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_real("temperature", self.temperature, 0, 100)
        check_integer("top_k", self.top_k, 0, (1 << 31) - 1)
        _check_real("top_p", self.top_p, 0, 1, above=True)
        _check_real("min_p", self.min_p, 0, 1)
        _check_real("repetition_penalty", self.repetition_penalty, 0, 10, above=True)
        _check_real("presence_penalty", self.presence_penalty, -10, 10)
        _check_real("frequency_penalty", self.frequency_penalty, -10, 10)
        check_integer("penalty_window", self.penalty_window, 0, (1 << 31) - 1)
        if self.seed is not None:
            check_integer("seed", self.seed, 0, _MAX_SEED)
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(
                f"logit_bias is {self.logit_bias!r}; allowed: a mapping from token id to number."
            )
        for token, bias in self.logit_bias.items():
            check_integer("A token id in logit_bias", token, 0, (1 << 31) - 1)
            if bias != -math.inf:
                _check_real(f"logit_bias of token {token}", bias, -1000, 1000, also=" or -inf")

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> SamplingParams:
        """The settings that a GGUF file recommends; the defaults where it names none.

        A recommendation outside its range is passed over: it must not keep a model from running.
        """
        from bitqwen.gguf import keys

        params = cls()
        for name, key in keys.SAMPLING.items():
            value = metadata.get(key)
            if value is not None:
                try:
                    params = replace(params, **{name: value})
                except UsageError:
                    continue
        return params

    def with_overrides(self, overrides: Mapping[str, Any]) -> SamplingParams:
        """These settings with those of ``overrides`` that are not ``None``.

        A temperature of 0 asks for the best token always, so recommended penalties, which belong to
        sampling, then hold only where ``overrides`` names them.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        base = SamplingParams() if given.get("temperature") == 0 else self
        return replace(base, **given)

    @property
    def greedy(self) -> bool:
        """Whether the best token is taken always."""
        return self.temperature == 0

    def sampler(self, vocab_size: int, *, forbidden: Iterable[int] = ()) -> Sampler:
        """The native sampler of one sequence.

        Args:
            vocab_size: logits from here on are padding and are never chosen.
            forbidden: token ids that must not be chosen.

        Raises:
            UsageError: logit_bias names a token that the model does not have.
        """
        from bitqwen._native import Sampler

        beyond = [token for token in self.logit_bias if token >= vocab_size]
        if beyond:
            raise UsageError(f"logit_bias names token {beyond[0]}; allowed: 0 to {vocab_size - 1}.")
        bias = {int(token): float(value) for token, value in self.logit_bias.items()}
        bias.update(dict.fromkeys(forbidden, -math.inf))
        return Sampler(
            vocab_size,
            temperature=float(self.temperature),
            top_k=int(self.top_k),
            top_p=float(self.top_p),
            min_p=float(self.min_p),
            repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            penalty_window=int(self.penalty_window),
            seed=draw_seed() if self.seed is None else int(self.seed),
            logit_bias=list(bias.items()),
        )


#: Names of the settings, for functions that take them as keyword arguments.
SAMPLING_NAMES = frozenset(setting.name for setting in fields(SamplingParams))


def draw_seed() -> int:
    """A seed nobody used; short enough to type, to get the same text again."""
    return secrets.randbits(32)


def _check_real(
    name: str, value: Any, low: float, high: float, *, above: bool = False, also: str = ""
) -> None:
    allowed = f"above {low}, up to {high}{also}" if above else f"{low} to {high}{also}"
    if not isinstance(value, Real) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; allowed: a number, {allowed}.")
    number = float(value)
    if not (low <= number <= high) or (above and number == low):
        raise UsageError(f"{name} is {value!r}; allowed: {allowed}.")


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raises a UsageError that names the range unless ``value`` is a whole number within it."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; allowed: a whole number, {low} to {high}.")
    if not low <= int(value) <= high:
        raise UsageError(f"{name} is {value!r}; allowed: {low} to {high}.")
