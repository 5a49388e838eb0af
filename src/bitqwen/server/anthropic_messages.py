"""Anthropic's Messages API: what a request may hold, and what it means to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from bitqwen.generation.sampling import SamplingParams
from bitqwen.server.errors import invalid
from bitqwen.server.schemas import StopString, Strict
from bitqwen.server.tools import AnswerForm, answer_form
from bitqwen.server.unions import TEXT_OR_LIST, by_field

MAX_STOP_SEQUENCES = 16


_TYPES = "This model takes blocks of these types here"


class CacheControl(Strict):
    """Where a client would like a cache entry; here every prompt's beginning is cached by itself."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Strict):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None


class ToolUseBlock(Strict):
    """A call that the model made earlier."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None


_Text = Annotated[TextBlock, Tag("of text")]
Texts = Annotated[
    Annotated[str, Tag("as text")]
    | Annotated[list[Annotated[_Text, by_field("type", "text", message=_TYPES)]], Tag("as list")],
    TEXT_OR_LIST,
]


class ToolResultBlock(Strict):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts = ""
    is_error: bool = False
    cache_control: CacheControl | None = None


_UserBlock = Annotated[
    _Text | Annotated[ToolResultBlock, Tag("of tool_result")],
    by_field("type", "text", "tool_result", message=_TYPES),
]
_AssistantBlock = Annotated[
    _Text | Annotated[ToolUseBlock, Tag("of tool_use")], by_field("type", "text", "tool_use", message=_TYPES)
]


class UserMessage(Strict):
    """What the user says, and what tools answered."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("as text")] | Annotated[list[_UserBlock], Tag("as list")],
        TEXT_OR_LIST,
    ]


class AssistantMessage(Strict):
    """What the model said; as the last message, the beginning of its answer."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("as text")] | Annotated[list[_AssistantBlock], Tag("as list")],
        TEXT_OR_LIST,
    ]


Message = Annotated[
    Annotated[UserMessage, Tag("of user")] | Annotated[AssistantMessage, Tag("of assistant")],
    by_field("role", "user", "assistant", message="The system prompt has a field of its own; roles here are"),
]


class Tool(Strict):
    """A function that the model may call; the server has no tools of its own."""

    type: Literal["custom"] | None = None
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool = False
    cache_control: CacheControl | None = None

    def function(self) -> dict[str, Any]:
        """The same in OpenAI's form."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.input_schema,
                "strict": self.strict,
            },
        }


class ToolChoice(Strict):
    """Whether the model may or must call a tool."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class JsonFormat(Strict):
    """The answer's schema."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """The answer's form."""

    format: JsonFormat | None = None


class Thinking(Strict):
    """Models served here do not think apart from their answer."""

    type: Literal["disabled"]


class Metadata(Strict):
    """About the request's sender; has no effect."""

    user_id: str | None = None


class Prompt(Strict):
    """What a request says to the model, without how it should answer."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "mcp_servers": "this server calls no other servers.",
        "container": "this server runs no code.",
        "context_management": "send the messages that the model should see.",
        "service_tier": "there is one tier.",
        "inference_geo": "the model runs here.",
        "speed": "there is one speed.",
    }

    model: str
    messages: list[Message] = Field(min_length=1)
    system: Texts | None = None
    tools: list[Tool] = Field(default=[], max_length=512)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None

    @property
    def prefilled(self) -> bool:
        """Whether the last message is the beginning of the answer."""
        return isinstance(self.messages[-1], AssistantMessage)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as the chat template takes them.

        Raises:
            ApiError: 400, a tool's result without its call, or a call without its result.
        """
        chat: list[dict[str, Any]] = []
        if self.system:
            chat.append({"role": "system", "content": _text(self.system)})
        calls: list[str] = []
        for place, message in enumerate(self.messages):
            where = f"messages.{place}.content"
            if isinstance(message, UserMessage):
                chat += _user_turn(message, calls, where)
                calls = []
            elif calls:
                raise invalid(f"The call '{calls[0]}' has no result before {where}.", where)
            else:
                turn = _assistant_turn(message)
                calls = [call["id"] for call in turn.get("tool_calls", [])]
                chat.append(turn)
        if calls and self.prefilled:
            raise invalid("The last message ends with a call, which needs a result.", "messages")
        return chat

    def form(self) -> AnswerForm:
        """What the answer may be.

        Raises:
            ApiError: 400, a tool choice that does not fit the tools.
            UsageError: a schema that is none.
        """
        choice = self.tool_choice or ToolChoice(type="auto")
        if (choice.type == "tool") != (choice.name is not None):
            raise invalid(
                "tool_choice names a tool if its type is 'tool', and only then.", "tool_choice.name"
            )
        schema_format = self.output_config and self.output_config.format
        return answer_form(
            [tool.function() for tool in self.tools],
            {"auto": "auto", "any": "required", "tool": "required", "none": "none"}[choice.type],  # type: ignore[arg-type] # its values are modes
            name=choice.name,
            parallel=not choice.disable_parallel_tool_use,
            schema=schema_format.schema_ if schema_format else None,
        )


class MessagesBody(Prompt):
    """The body of ``POST /v1/messages``."""

    max_tokens: int = Field(ge=1, lt=1 << 31)
    stop_sequences: list[StopString] = Field(default=[], max_length=MAX_STOP_SEQUENCES)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=100)
    top_k: int | None = Field(None, ge=0, lt=1 << 31)
    top_p: float | None = Field(None, gt=0, le=1)
    metadata: Metadata | None = None

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The settings that result, with the model's recommended ones for those not given."""
        return defaults.with_overrides(
            {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        )


def _text(texts: str | Sequence[TextBlock]) -> str:
    return texts if isinstance(texts, str) else "\n".join(block.text for block in texts)


def _user_turn(message: UserMessage, calls: list[str], where: str) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        blocks: Sequence[TextBlock | ToolResultBlock] = [TextBlock(type="text", text=message.content)]
    else:
        blocks = message.content
    if not blocks:
        raise invalid("The content is empty.", where)
    results = {block.tool_use_id: block for block in blocks if isinstance(block, ToolResultBlock)}
    for call in results:
        if call not in calls:
            raise invalid(f"There is no call '{call:.100}' in the message before.", where)
    for call in calls:
        if call not in results:
            raise invalid(f"The call '{call}' has no result.", where)
    # The model tells results apart by their order only.
    turn = [_result(results[call]) for call in calls]
    texts = [block for block in blocks if isinstance(block, TextBlock)]
    return [*turn, {"role": "user", "content": _text(texts)}] if texts else turn


def _result(block: ToolResultBlock) -> dict[str, Any]:
    text = _text(block.content)
    return {"role": "tool", "content": f"Error: {text}" if block.is_error else text}


def _assistant_turn(message: AssistantMessage) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    turn: dict[str, Any] = {
        "role": "assistant",
        "content": _text([block for block in message.content if isinstance(block, TextBlock)]),
    }
    calls = [
        {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": block.input}}
        for block in message.content
        if isinstance(block, ToolUseBlock)
    ]
    return {**turn, "tool_calls": calls} if calls else turn
