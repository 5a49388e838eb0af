"""What the API modules ask of the scheduler, and what they get back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bitqwen.generation.options import GenerationSettings, TokenConstraint
from bitqwen.generation.results import FinishReason, TokenLogprobs
from bitqwen.generation.sampling import SamplingParams, draw_seed
from bitqwen.generation.stopping import StopStrings


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt and how to answer it.

    Attributes:
        prompt: token ids, at least one.
        sampling: its seed is that of the first choice; the others' follow it. ``None`` draws one.
        max_tokens: longest answer; ``None`` goes on to the context's end.
        choices: answers to make; they share the prompt's computation.
        stop: strings that end an answer.
        stop_token_ids: ids that end it, beside the model's own.
        ignore_eos: do not let the model end the answer.
        logprobs: report each token's log-probability and this many of the best beside it.
        constraint: makes the object that says which tokens may follow, once for each choice. Called on the
            engine's thread; what can fail should have been tried before.
        client: whose request it is; running time is shared fairly between clients.
        seconds: time limit; ``None`` is the server's.
    """

    prompt: Sequence[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    choices: int = 1
    stop: Sequence[str] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    constraint: Callable[[], TokenConstraint] | None = None
    client: str = ""
    seconds: float | None = None

    def with_seed(self) -> GenerationRequest:
        """The same with a seed, drawn if there is none."""
        if self.sampling.seed is not None:
            return self
        return replace(self, sampling=replace(self.sampling, seed=draw_seed()))

    def settings(self, choice: int) -> GenerationSettings:
        """The settings of one choice, with a state of their own."""
        seed = ((self.sampling.seed or 0) + choice) % (1 << 64)
        return GenerationSettings(
            sampling=replace(self.sampling, seed=seed),
            max_tokens=self.max_tokens,
            stop=StopStrings(self.stop),
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            constraint=None if self.constraint is None else self.constraint(),
        )


@dataclass(frozen=True, slots=True)
class Delta:
    """What one step added to one choice.

    Attributes:
        choice: its index.
        text: may be empty, where a character or a possible stop string is unfinished.
        token: the id that the step chose; ``None`` if it was a stop token.
        logprobs: of that token, if asked for.
        finish_reason: set on a choice's last delta.
        stopped_by: then the stop string or the stop token's id.
    """

    choice: int
    text: str
    token: int | None
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    stopped_by: str | int | None


@dataclass
class Usage:
    """Counts and times of one request; final when its handle is exhausted.

    Attributes:
        prompt_tokens: length of the prompt.
        cached_tokens: of those, how many were taken from the prefix cache.
        completion_tokens: of all choices.
        queued_seconds: from submission to the start of the prompt.
        prefill_seconds: from there to the first token.
        decode_seconds: from there to the end.
        seed: of the first choice.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    seed: int = 0
