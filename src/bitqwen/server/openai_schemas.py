"""Request bodies of OpenAI's API, with the further sampling settings that vLLM and llama-server take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from bitqwen.errors import UsageError
from bitqwen.generation import grammars
from bitqwen.server.schemas import SamplingFields, Stop, Strict, TokenId, TopLogprobs
from bitqwen.server.unions import TEXT_OR_LIST, by_field


class TextPart(Strict):
    """A part of a message; this model reads text only."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("as text")]
    | Annotated[Annotated[list[TextPart], Field(min_length=1)], Tag("as list")],
    TEXT_OR_LIST,
]


class FunctionCall(Strict):
    """What an earlier answer called."""

    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class SystemMessage(Strict):
    """Instructions; "developer" is OpenAI's newer name of the same."""

    role: Literal["system", "developer"]
    content: Content
    name: str | None = Field(None, description="Given to the chat template.")


class UserMessage(Strict):
    """What the user said."""

    role: Literal["user"]
    content: Content
    name: str | None = Field(None, description="Given to the chat template.")


class AssistantMessage(Strict):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = Field(None, description="Given to the chat template.")
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    refusal: None = None


class ToolMessage(Strict):
    """What a tool gave back."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = Field(None, description="Given to the chat template.")


Message = Annotated[
    Annotated[SystemMessage, Tag("of system")]
    | Annotated[SystemMessage, Tag("of developer")]
    | Annotated[UserMessage, Tag("of user")]
    | Annotated[AssistantMessage, Tag("of assistant")]
    | Annotated[ToolMessage, Tag("of tool")],
    by_field(
        "role", "system", "developer", "user", "assistant", "tool", message="a message's role is one of"
    ),
]


class Function(Strict):
    """A function that the model may call."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Enforce the parameters' schema.")


class Tool(Strict):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    """A function by its name."""

    name: str


class NamedTool(Strict):
    """The one tool to call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Strict):
    """A schema that the answer must fit."""

    name: str = Field(min_length=1, max_length=64)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The schema is enforced, whatever this says.")


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON that fits a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    """What a stream tells beside the answer."""

    include_usage: bool = Field(False, description="End with a chunk that has the token counts.")


class GenerationFields(SamplingFields):
    """What chat and text completions have in common."""

    model: str
    n: int = Field(1, ge=1, le=128)
    stop: Stop | None = None
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=64)] = ()
    ignore_eos: bool = Field(False, description="Do not let the model end the answer.")
    logit_bias: dict[str, float] | None = Field(None, description="Token id to a bias from -100 to 100.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Running time is shared fairly between users.")
    guided_regex: str | None = Field(None, description="A pattern that the whole answer matches.")
    guided_choice: list[str] | None = Field(None, description="The answer is one of these.")
    guided_grammar: str | None = Field(None, description="A grammar in Lark or GBNF.")
    guided_json: dict[str, Any] | None = Field(None, description="A schema that the answer fits.")

    @model_validator(mode="after")
    def _options_of_streams(self) -> GenerationFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is allowed with stream only")
        return self

    def biases(self) -> dict[int, float] | None:
        """Token id -> bias.

        Raises:
            UsageError: a key that is no id, or a bias out of range; OpenAI's -100 forbids a token.
        """
        if self.logit_bias is None:
            return None
        biases: dict[int, float] = {}
        for token, bias in self.logit_bias.items():
            if not token.isascii() or not token.isdigit() or len(token) > 9:
                raise UsageError(f"logit_bias has the key {token!r:.40}; allowed: token ids.")
            if not -100 <= bias <= 100:
                raise UsageError(f"logit_bias of token {token} is {bias}; allowed: -100 to 100.")
            biases[int(token)] = bias
        return biases

    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def guides(self) -> dict[str, grammars.Grammar]:
        """The grammars that the request names, by the parameter's name.

        Raises:
            UsageError: one that is none.
        """
        made = {
            "guided_regex": self.guided_regex is not None and grammars.regex(self.guided_regex),
            "guided_choice": self.guided_choice is not None and grammars.choice(self.guided_choice),
            "guided_grammar": self.guided_grammar is not None and grammars.grammar(self.guided_grammar),
            "guided_json": self.guided_json is not None and grammars.json_schema(self.guided_json),
        }
        return {name: grammar for name, grammar in made.items() if isinstance(grammar, grammars.Grammar)}


_STORAGE = "this server keeps nothing between requests."
_TEXT_ONLY = "this model reads and writes text."


class ChatRequest(GenerationFields):
    """Body of ``POST /v1/chat/completions``."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "audio": _TEXT_ONLY,
        "function_call": "use tool_choice.",
        "functions": "use tools.",
        "metadata": _STORAGE,
        "moderation": "there is no moderation.",
        "prediction": "there is no speculative decoding.",
        "prompt_cache_key": "prompts are cached by their beginnings.",
        "prompt_cache_retention": "prompts are cached by their beginnings.",
        "reasoning_effort": "this model does not reason apart from its answer.",
        "safety_identifier": "use user.",
        "service_tier": "there is only one.",
        "verbosity": "ask for it in the prompt.",
        "web_search_options": "the server does not search.",
    }

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    continue_final_message: bool = Field(False, description="Go on with the last message.")
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _pairs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs is allowed with logprobs only")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are the same; give one")
        if self.tool_choice not in {None, "none"} and self.tools is None:
            raise ValueError("tool_choice is allowed with tools only")
        return self

    def guides(self) -> dict[str, grammars.Grammar]:
        """As for all requests, and the response format's."""
        guides = super().guides()
        if isinstance(self.response_format, JsonObjectFormat):
            guides["response_format"] = grammars.json_object()
        elif isinstance(self.response_format, JsonSchemaFormat):
            guides["response_format"] = grammars.json_schema(self.response_format.json_schema.schema_)
        return guides


class CompletionRequest(GenerationFields):
    """Body of ``POST /v1/completions``."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {"best_of": "ask for n answers and choose yourself."}

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=128)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=128)]
    )
    max_tokens: int | None = Field(16, ge=0, lt=1 << 31)
    logprobs: TopLogprobs | None = None
    echo: bool = Field(False, description="Begin each text with its prompt.")
    suffix: str | None = Field(None, description="Text after the gap to fill; for Coder models.")


class EmbeddingRequest(Strict):
    """Body of ``POST /v1/embeddings``."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {"dimensions": "the model was not trained for shorter vectors."}

    model: str
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=2048)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=2048)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Literal["mean", "last"] = Field(
        "mean", description="The mean of all tokens' states, or the last token's."
    )
    user: str | None = None


def one_or_several(given: str | Sequence[Any]) -> list[str | list[int]]:
    """The texts, or lists of token ids, of a field that may hold one or several of them."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]  # type: ignore[list-item] # a text, or one list of ids
    return list(given)
