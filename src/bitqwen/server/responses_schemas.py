"""OpenAI's Responses API: what a request may hold, and what it means to the model."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from bitqwen.errors import UsageError
from bitqwen.generation import grammars
from bitqwen.generation.sampling import SamplingParams
from bitqwen.server.errors import invalid
from bitqwen.server.schemas import Strict
from bitqwen.server.tools import AnswerForm, answer_form
from bitqwen.server.unions import TEXT_OR_LIST, by_field

_PARTS = "This model reads and writes text only; parts may be of type"
_STATUS = Literal["in_progress", "completed", "incomplete"]


class TextPart(Strict):
    """Text that the model is to read."""

    type: Literal["input_text"]
    text: str


class OutputPart(Strict):
    """Text that the model wrote, as an earlier response gave it."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(default=[])
    logprobs: list[Any] | None = None


Parts = Annotated[
    Annotated[str, Tag("as text")]
    | Annotated[
        list[
            Annotated[
                Annotated[TextPart, Tag("of input_text")] | Annotated[OutputPart, Tag("of output_text")],
                by_field("type", "input_text", "output_text", message=_PARTS),
            ]
        ],
        Tag("as list"),
    ],
    TEXT_OR_LIST,
]


class MessageItem(Strict):
    """A message of anybody."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts
    id: str | None = None
    status: _STATUS | None = None
    phase: None = None


class CallItem(Strict):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: _STATUS | None = None


class ResultItem(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Parts
    id: str | None = None
    status: _STATUS | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("of message")]
    | Annotated[CallItem, Tag("of function_call")]
    | Annotated[ResultItem, Tag("of function_call_output")],
    by_field(
        "type",
        "message",
        "function_call",
        "function_call_output",
        default="message",
        message="Items of the input may be of type",
    ),
]


class Tool(Strict):
    """A function that the model may call; the server has no tools of its own."""

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(None, description="Bind arguments to the schema; here only if true.")


class NamedTool(Strict):
    """The one tool that the model must call."""

    type: Literal["function"]
    name: str


class PlainFormat(Strict):
    """Any text."""

    type: Literal["text"] = "text"


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    """JSON of a schema, which is enforced whatever ``strict`` says."""

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


Format = Annotated[
    Annotated[PlainFormat, Tag("of text")]
    | Annotated[JsonObjectFormat, Tag("of json_object")]
    | Annotated[JsonSchemaFormat, Tag("of json_schema")],
    by_field("type", "text", "json_object", "json_schema", message="Formats are"),
]


class TextConfig(Strict):
    """The answer's form."""

    format: Format = PlainFormat()


class ResponsesBody(Strict):
    """The body of ``POST /v1/responses``."""

    UNSUPPORTED: ClassVar[dict[str, str]] = {
        "store": "nothing is stored; send store=false, and the whole conversation as input.",
        "previous_response_id": "nothing is stored; send the whole conversation as input.",
        "conversation": "nothing is stored; send the whole conversation as input.",
        "background": "nothing is stored; wait for the answer, or stream it.",
        "background_options": "nothing is stored; wait for the answer, or stream it.",
        "prompt": "nothing is stored; send the prompt as input.",
        "reasoning": "the model does not think apart from its answer.",
        "include": "there is nothing more to include.",
        "context_management": "send what the model should see.",
        "max_tool_calls": "the server has no tools of its own.",
        "moderation": "the server does not judge texts.",
        "service_tier": "there is one tier.",
        "top_logprobs": "use /v1/chat/completions for log-probabilities.",
        "image": "this model reads and writes text only.",
    }

    model: str
    input: Annotated[
        Annotated[str, Field(min_length=1), Tag("as text")]
        | Annotated[list[Item], Field(min_length=1), Tag("as list")],
        TEXT_OR_LIST,
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, lt=1 << 31)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    stream: bool | None = None
    tools: list[Tool] | None = Field(None, max_length=512)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool | None = None
    text: TextConfig = TextConfig()
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, str] | None = Field(None, description="Comes back in the response.")
    user: str | None = Field(None, description="Comes back in the response.")
    safety_identifier: str | None = Field(None, description="Comes back in the response.")
    prompt_cache_key: str | None = Field(
        None, description="Comes back in the response; beginnings of prompts are cached without it."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        empty: tuple[Any, ...] = (None, False, [], {})
        return {key: value for key, value in data.items() if key not in cls.UNSUPPORTED or value not in empty}

    def conversation(self) -> list[dict[str, Any]]:
        """The input as the chat template takes it.

        Raises:
            ApiError: 400, a call without its result, or a result without its call.
        """
        chat: list[dict[str, Any]] = []
        if self.instructions:
            chat.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*chat, {"role": "user", "content": self.input}]
        results = {item.call_id: item for item in self.input if isinstance(item, ResultItem)}
        known = {item.call_id for item in self.input if isinstance(item, CallItem)}
        for call in results:
            if call not in known:
                raise invalid(f"There is no call '{call:.100}' in the input.", "input")
        calls: list[CallItem] = []  # of the turn being read
        for item in self.input:
            if isinstance(item, CallItem):
                if item.call_id not in results:
                    raise invalid(f"The call '{item.call_id:.100}' has no result in the input.", "input")
                calls.append(item)
                continue
            if isinstance(item, ResultItem):
                if calls:  # the first result of a round: the others follow in the order of the calls
                    _add_calls(chat, calls)
                    chat += [
                        {"role": "tool", "content": _text(results[call.call_id].output)} for call in calls
                    ]
                    calls = []
                continue
            if calls:
                raise invalid(
                    f"The call '{calls[0].call_id:.100}' has no result before the next message.", "input"
                )
            role = "system" if item.role == "developer" else item.role
            chat.append({"role": role, "content": _text(item.content)})
        return chat

    def form(self) -> AnswerForm:
        """What the answer may be.

        Raises:
            UsageError: a tool choice that does not fit the tools, or a schema that is none.
        """
        wanted = self.text.format
        choice = self.tool_choice
        named = isinstance(choice, NamedTool)
        tools = [
            {"type": "function", "function": tool.model_dump(exclude={"type"})} for tool in self.tools or []
        ]
        if isinstance(wanted, JsonObjectFormat) and (not tools or choice == "none"):
            return AnswerForm(None, grammars.json_object())
        schema = {"type": "object"} if isinstance(wanted, JsonObjectFormat) else None
        if isinstance(wanted, JsonSchemaFormat):
            schema = wanted.schema_
        if named and not tools:
            raise UsageError("tool_choice requires a call, but there are no tools.")
        return answer_form(
            tools,
            "required" if isinstance(choice, NamedTool) else choice,
            name=choice.name if isinstance(choice, NamedTool) else None,
            parallel=self.parallel_tool_calls is not False,
            schema=schema,
        )

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """The settings that result, with the model's recommended ones for those not given."""
        return defaults.with_overrides({"temperature": self.temperature, "top_p": self.top_p})

    def echoed(self, sampling: SamplingParams) -> dict[str, Any]:
        """The settings as the response repeats them."""
        choice = self.tool_choice
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
            "store": False,
            "temperature": sampling.temperature,
            "text": {"format": self.text.format.model_dump(by_alias=True)},
            "tool_choice": choice.model_dump() if isinstance(choice, NamedTool) else choice,
            "tools": [tool.model_dump() for tool in self.tools or []],
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "user": self.user,
        }


def _text(parts: str | list[TextPart | OutputPart]) -> str:
    return parts if isinstance(parts, str) else "\n".join(part.text for part in parts)


def _add_calls(chat: list[dict[str, Any]], calls: list[CallItem]) -> None:
    """Adds calls to the assistant's turn that they belong to."""
    if not chat or chat[-1]["role"] != "assistant":
        chat.append({"role": "assistant", "content": ""})
    chat[-1]["tool_calls"] = [
        {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
