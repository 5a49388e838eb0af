"""A scheduler whose model says what a test tells it to: for what the interfaces make of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from bitqwen.errors import BitqwenError
from bitqwen.generation.answer import Answer
from bitqwen.generation.language_model import LanguageModel
from bitqwen.server.handle import GenerationHandle
from bitqwen.server.requests import Delta, GenerationRequest, Usage


class ScriptedScheduler:
    """Answers each request with the next of ``answers``; choices of one request take one each.

    Sampling, stop strings, constraints and log-probabilities are the real ones: only the logits are made up.

    Attributes:
        answers: what is still to be said.
        requests: what was submitted.
        cached_tokens: of every prompt, as the usage reports it.
        error: raised after the first token of an answer.
        pause: seconds between two tokens.
        cancelled: how many requests were given up by their reader.
    """

    full = broken = False
    running = queued = 0

    def __init__(self, language_model: LanguageModel, answers: Sequence[str] = ()) -> None:
        self.answers = list(answers)
        self.requests: list[GenerationRequest] = []
        self.cached_tokens = 0
        self.error: BitqwenError | None = None
        self.pause = 0.0
        self.cancelled = 0
        self._tokenizer = language_model.tokenizer
        self._vocab_size = language_model.model.vocab_size
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, request: GenerationRequest) -> GenerationHandle:
        request = request.with_seed()
        self.requests.append(request)
        usage = Usage(len(request.prompt), self.cached_tokens, seed=request.sampling.seed or 0)
        handle = GenerationHandle(usage, self._cancel, lambda backlog: None)
        task = asyncio.ensure_future(self._speak(request, handle, usage))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return handle

    def close(self) -> None:
        """Nothing to free."""

    def _cancel(self) -> None:
        self.cancelled += 1

    async def _speak(self, request: GenerationRequest, handle: GenerationHandle, usage: Usage) -> None:
        for choice in range(request.choices):
            answer = Answer(self._tokenizer, request.prompt, request.settings(choice))
            script = [*self._tokenizer.encode(self.answers.pop(0)), self._tokenizer.eos_id]
            while answer.finish_reason is None:
                logits = np.random.default_rng(len(script)).normal(size=self._vocab_size).astype(np.float32)
                logits[script.pop(0) if script else self._tokenizer.eos_id] += 1000
                piece = answer.next_piece(logits, room=1000)
                usage.completion_tokens += piece.token is not None
                handle.put(
                    [
                        Delta(
                            choice,
                            piece.text,
                            piece.token,
                            piece.logprobs,
                            answer.finish_reason,
                            answer.stopped_by,
                        )
                    ]
                )
                await asyncio.sleep(self.pause)
                if self.error is not None:
                    handle.put([self.error])
                    return
        handle.put([None])
