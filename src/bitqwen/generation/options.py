"""The keyword arguments of :meth:`LanguageModel.generate` and :meth:`LanguageModel.stream`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, cast

from bitqwen.errors import UsageError
from bitqwen.generation.sampling import SAMPLING_NAMES, SamplingParams, check_integer, draw_seed
from bitqwen.generation.stopping import StopStrings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bitqwen.generation.grammars import Grammar

DEFAULT_MAX_TOKENS = 1024
MAX_TOP_LOGPROBS = 100


class TokenConstraint(Protocol):
    """Something that knows which tokens may follow: a grammar, a schema.

    It acts before the temperature and the cuts (top-k ...), so these choose among the allowed tokens.
    """

    def mask(self) -> NDArray[np.uint32] | None:
        """Bit t % 32 of word t // 32 is set where token t may come next; ``None`` allows all."""

    def accept(self, token: int) -> None:
        """Goes on with ``token``."""

    @property
    def done(self) -> bool:
        """Whether nothing may follow any more: the answer ends here."""


class PromptOptions(TypedDict, total=False):
    """How a prompt becomes token ids.

    Attributes:
        tools: functions that the model may call, as JSON schemas in OpenAI's form.
        continue_final_message: go on with the last message instead of answering it.
        allow_special: read control tokens' names in the prompt as control tokens.
        template_variables: further variables for the chat template.
    """

    tools: Sequence[Mapping[str, Any]] | None
    continue_final_message: bool
    allow_special: bool
    template_variables: Mapping[str, Any] | None


class GenerationOptions(PromptOptions, total=False):
    """Everything that a generation may be told; what is absent or ``None`` is the model's default.

    The sampling settings are those of :class:`SamplingParams`.

    Attributes:
        max_tokens: the longest answer; ``None`` goes on to the end of the context.
        stop: strings that end the answer.
        stop_token_ids: ids that end it, beside the model's own.
        ignore_eos: do not let the model end the answer.
        logprobs: report each token's log-probability, and this many of the best beside it (0 to 100).
        constraint: which tokens may follow: one of :mod:`bitqwen.generation.grammars`, or your own.
            Reported log-probabilities are the model's own, before it.
    """

    max_tokens: int | None
    stop: str | Iterable[str] | None
    stop_token_ids: Iterable[int] | None
    ignore_eos: bool
    logprobs: int | None
    constraint: Grammar | TokenConstraint | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    penalty_window: int | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


_PROMPT_NAMES = frozenset(PromptOptions.__annotations__)
_NAMES = frozenset(GenerationOptions.__annotations__) | _PROMPT_NAMES


@dataclass(frozen=True)
class GenerationSettings:
    """Checked options of one generation."""

    sampling: SamplingParams  # with a seed
    max_tokens: int | None
    stop: StopStrings
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    logprobs: int | None
    constraint: TokenConstraint | None


def split_options(
    options: GenerationOptions, defaults: SamplingParams
) -> tuple[PromptOptions, GenerationSettings]:
    """Checks options and fills in the defaults.

    Raises:
        UsageError: an unknown name, or a value that is not allowed.
    """
    unknown = sorted(options.keys() - _NAMES)
    if unknown:
        raise UsageError(f"There is no option {unknown[0]!r}; allowed: {', '.join(sorted(_NAMES))}.")
    given: dict[str, Any] = dict(options)
    prompt = cast("PromptOptions", {name: given[name] for name in _PROMPT_NAMES & given.keys()})
    sampling = defaults.with_overrides({name: given[name] for name in SAMPLING_NAMES & given.keys()})
    if sampling.seed is None:
        sampling = replace(sampling, seed=draw_seed())
    max_tokens = given.get("max_tokens", DEFAULT_MAX_TOKENS)
    if max_tokens is not None:
        check_integer("max_tokens", max_tokens, 1, (1 << 31) - 1)
    logprobs = given.get("logprobs")
    if logprobs is not None:
        check_integer("logprobs", logprobs, 0, MAX_TOP_LOGPROBS)
    stop_token_ids = frozenset(given.get("stop_token_ids") or ())
    for token in stop_token_ids:
        check_integer("A stop token id", token, 0, (1 << 31) - 1)
    return prompt, GenerationSettings(
        sampling=sampling,
        max_tokens=max_tokens,
        stop=StopStrings(given.get("stop")),
        stop_token_ids=stop_token_ids,
        ignore_eos=bool(given.get("ignore_eos")),
        logprobs=logprobs,
        constraint=given.get("constraint"),
    )
