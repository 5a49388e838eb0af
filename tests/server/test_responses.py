from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from live import LiveServer
from scripted import ScriptedScheduler

from bitqwen.errors import ResourceError
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.language_model import LanguageModel

openai = pytest.importorskip("openai", reason="the official client is not installed (extra: test)")
pydantic = pytest.importorskip("pydantic")

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def qwen(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    return load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024)


@pytest.fixture(scope="module")
def script(qwen: LanguageModel) -> ScriptedScheduler:
    return ScriptedScheduler(qwen)


@pytest.fixture(scope="module")
def server(qwen: LanguageModel, script: ScriptedScheduler) -> Iterator[LiveServer]:
    with LiveServer(qwen, script, max_tokens=300) as server:
        yield server


@pytest.fixture
def client(server: LiveServer, script: ScriptedScheduler) -> Any:
    script.answers, script.requests, script.cached_tokens, script.error = [], [], 0, None
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def prompt_of(qwen: LanguageModel, script: ScriptedScheduler) -> str:
    return qwen.tokenizer.decode(script.requests[-1].prompt)


def test_a_text(client: Any, script: ScriptedScheduler, qwen: LanguageModel) -> None:
    script.answers = ["Good day 🚀"]
    script.cached_tokens = 2
    response = client.responses.create(
        model="tiny",
        input="Hello",
        instructions="Be kind.",
        temperature=0.25,
        top_p=0.5,
        metadata={"a": "b"},
        store=False,
        user="me",
        reasoning=None,
        include=[],
    )
    assert response.output_text == "Good day 🚀"
    assert (response.status, response.object, response.model) == ("completed", "response", "tiny")
    assert response.usage.input_tokens == len(script.requests[0].prompt)
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    assert (response.metadata, response.user, response.temperature) == ({"a": "b"}, "me", 0.25)
    assert (script.requests[0].sampling.temperature, script.requests[0].sampling.top_p) == (0.25, 0.5)
    assert "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>" in prompt_of(
        qwen, script
    )


def test_the_limit_makes_it_incomplete(client: Any, script: ScriptedScheduler) -> None:
    script.answers = ["one two three"]
    response = client.responses.create(model="tiny", input="Hello", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage.output_tokens == 2


def test_a_conversation_with_calls_comes_back_as_input(
    client: Any, script: ScriptedScheduler, qwen: LanguageModel
) -> None:
    script.answers = [f"Let me see.\n{CALL}\n{CALL.replace('Rome', 'Oslo')}", "Warm, then cold."]
    first = client.responses.create(model="tiny", input="Weather?", tools=[WEATHER])
    assert [item.type for item in first.output] == ["message", "function_call", "function_call"]
    assert json.loads(first.output[1].arguments) == {"city": "Rome"}
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"{degrees} degrees"}
        for call, degrees in zip(reversed(first.output[1:]), (5, 30), strict=True)
    ]
    history = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        *first.output,
        *results,
    ]
    second = client.responses.create(model="tiny", input=history, tools=[WEATHER])
    assert second.output_text == "Warm, then cold."
    prompt = prompt_of(qwen, script)
    assert f"<|im_start|>assistant\nLet me see.\n{CALL}\n" in prompt
    assert "<tool_response>\n30 degrees\n</tool_response>\n<tool_response>\n5 degrees\n" in prompt


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_required_call_is_enforced(client: Any, script: ScriptedScheduler, choice: Any) -> None:
    script.answers = ["I do not want to"]
    response = client.responses.create(
        model="tiny", input="Hello", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False
    )
    assert [item.type for item in response.output] == ["function_call"]
    assert json.loads(response.output[0].arguments)["city"] in {"Rome", "Oslo"}


def test_no_tools_are_called_or_shown_with_none(
    client: Any, script: ScriptedScheduler, qwen: LanguageModel
) -> None:
    script.answers = [CALL]
    response = client.responses.create(model="tiny", input="Hello", tools=[WEATHER], tool_choice="none")
    assert response.output_text == CALL
    assert "weather" not in prompt_of(qwen, script)


def test_structured_output(client: Any, script: ScriptedScheduler) -> None:
    class Colour(pydantic.BaseModel):
        red: bool

    script.answers = ["no JSON at all"] * 2
    parsed = client.responses.parse(model="tiny", input="Hello", text_format=Colour)
    assert isinstance(parsed.output_parsed, Colour)
    script.answers = ['{"a": 1} and more']
    free = client.responses.create(model="tiny", input="x", text={"format": {"type": "json_object"}})
    assert json.loads(free.output_text) == {"a": 1}


class TestStreaming:
    def test_events_in_their_order(self, server: LiveServer, client: Any, script: ScriptedScheduler) -> None:
        script.answers = [f"Hm.\n{CALL}"]
        body = {"model": "tiny", "input": "Hello", "tools": [WEATHER], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/responses", json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        names = [line.removeprefix("event: ") for line in lines[::2]]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
        assert [event["type"] for event in events] == names
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        shape = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        assert shape == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert events[-1]["response"]["output"] == done
        assert events[0]["response"]["id"] == events[-1]["response"]["id"]
        assert events[0]["response"]["usage"] is None

    def test_the_official_client_puts_them_together(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = [f"Hm 🚀.\n{CALL}"]
        with client.responses.stream(model="tiny", input="Hello", tools=[WEATHER]) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            response = stream.get_final_response()
        assert text == response.output_text == "Hm 🚀."
        assert json.loads(response.output[1].arguments) == {"city": "Rome"}
        assert response.status == "completed"

    def test_a_text_that_is_cut_off(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["one two three"]
        *_, last = client.responses.create(model="tiny", input="Hello", max_output_tokens=2, stream=True)
        assert last.type == "response.incomplete"
        assert last.response.output[0].status == "incomplete"

    def test_an_error_on_the_way_is_an_event(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["Hello there"]
        script.error = ResourceError("no more memory")
        *_, last = client.responses.create(model="tiny", input="Hello", stream=True)
        assert last.type == "response.failed"
        assert "no more memory" in last.response.error.message


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"store": True}, "store", "nothing is stored"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation"),
        ({"conversation": "c"}, "conversation", "whole conversation"),
        ({"background": True}, "background", "not supported"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "not supported"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "not supported"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"top_logprobs": 2}, "top_logprobs", "chat/completions"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
        ({"input": ""}, "input", "at least 1"),
        ({"input": []}, "input", "at least 1"),
        ({"input": [{"type": "reasoning"}]}, "input.0", "'function_call_output'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0",
            "text only",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "x", "output": "1"}]},
            "input",
            "no call 'x'",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "{}"}]},
            "input",
            "no result",
        ),
        ({"max_output_tokens": 301}, "max_output_tokens", "allows up to 300"),
        ({"tool_choice": "required"}, None, "no tools"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format", "'json_schema'"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"not": {}}}}},
            "text.format",
            "refused",
        ),
        ({"nonsense": 1}, "nonsense", "no parameter"),
    ],
)
def test_refusals_name_what_is_wrong(
    client: Any, change: dict[str, Any], param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        client.post("/responses", body={"model": "tiny", "input": "Hello"} | change, cast_to=object)
    assert error.value.param == param
