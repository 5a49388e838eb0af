"""What OpenAI's interfaces answer: models for the published document, and the parts that they share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from bitqwen.server.requests import Usage


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class TokenUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Timings(BaseModel):
    """Seconds, and tokens a second; not part of OpenAI's API."""

    queued_seconds: float
    prefill_seconds: float
    decode_seconds: float
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    seed: int


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None = None
    tool_calls: list[dict[str, Any]] = []


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """An answer of the chat interface."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage
    timings: Timings


class TextChoice(BaseModel):
    """One of n texts."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    """An answer of the completion interface."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: TokenUsage
    timings: Timings


class Embedding(BaseModel):
    """One text's vector, of length 1; base64 of float32, little-endian, if asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """Vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(BaseModel):
    """A model that may be asked for; its context is known once it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None
    aliases: list[str]
    state: Literal["unloaded", "loading", "loaded"]


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[ModelCard]


def usage_of(usage: Usage) -> dict[str, Any]:
    """Token counts as OpenAI spells them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def timings(usage: Usage) -> dict[str, Any]:
    """Times of a request, and the seed that gives the same answer again."""

    def rate(tokens: int, seconds: float) -> float:
        return round(tokens / seconds, 2) if seconds > 0 else 0.0

    return {
        "queued_seconds": round(usage.queued_seconds, 6),
        "prefill_seconds": round(usage.prefill_seconds, 6),
        "decode_seconds": round(usage.decode_seconds, 6),
        "prefill_tokens_per_second": rate(usage.prompt_tokens - usage.cached_tokens, usage.prefill_seconds),
        "decode_tokens_per_second": rate(max(0, usage.completion_tokens - 1), usage.decode_seconds),
        "seed": usage.seed,
    }
