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

anthropic = pytest.importorskip("anthropic", reason="the official client is not installed (extra: test)")

WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 3}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def qwen(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    """The tiny model with Qwen2.5's own chat template."""
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
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def prompt_of(qwen: LanguageModel, script: ScriptedScheduler) -> str:
    return qwen.tokenizer.decode(script.requests[-1].prompt)


class TestMessages:
    def test_an_answer(self, client: Any, script: ScriptedScheduler, qwen: LanguageModel) -> None:
        script.answers = ["Good day, 日本 🚀"]
        script.cached_tokens = 4
        message = client.messages.create(model="tiny", max_tokens=100, messages=HELLO, system="Be kind.")
        assert [block.type for block in message.content] == ["text"]
        assert message.content[0].text == "Good day, 日本 🚀"
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert (message.role, message.model, message.type) == ("assistant", "tiny", "message")
        assert message.id.startswith("msg_")
        assert message.usage.cache_read_input_tokens == 4
        assert message.usage.input_tokens == len(script.requests[0].prompt) - 4
        assert message.usage.output_tokens == len(qwen.tokenizer.encode("Good day, 日本 🚀"))
        assert "<|im_start|>system\nBe kind.<|im_end|>" in prompt_of(qwen, script)

    def test_blocks_of_text(self, client: Any, script: ScriptedScheduler, qwen: LanguageModel) -> None:
        script.answers = ["ok"]
        text = [
            {"type": "text", "text": "one", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "two"},
        ]
        client.messages.create(
            model="tiny", max_tokens=9, system=text, messages=[{"role": "user", "content": text}]
        )
        assert prompt_of(qwen, script).count("one\ntwo<|im_end|>") == 2

    def test_the_limit_and_stop_sequences_end_it(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["one two three"] * 2
        cut = client.messages.create(model="tiny", max_tokens=2, messages=HELLO)
        assert (cut.stop_reason, cut.usage.output_tokens) == ("max_tokens", 2)
        stopped = client.messages.create(
            model="tiny", max_tokens=50, messages=HELLO, stop_sequences=["zzz", " three"]
        )
        assert (stopped.content[0].text, stopped.stop_reason) == ("one two", "stop_sequence")
        assert stopped.stop_sequence == " three"

    def test_sampling_settings_reach_the_sampler(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["ok"]
        settings = {"temperature": 0.25, "top_k": 7, "top_p": 0.5}
        client.messages.create(
            model="tiny", max_tokens=9, messages=HELLO, metadata={"user_id": "u"}, extra_body=settings
        )
        sampling = script.requests[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.25, 7, 0.5)

    def test_the_last_message_may_begin_the_answer(
        self, client: Any, script: ScriptedScheduler, qwen: LanguageModel
    ) -> None:
        script.answers = [" world"]
        begun = [*HELLO, {"role": "assistant", "content": "Hello"}]
        assert client.messages.create(model="tiny", max_tokens=9, messages=begun).content[0].text == " world"
        assert prompt_of(qwen, script).endswith("<|im_start|>assistant\nHello")

    def test_structured_output(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["this is no JSON, so the grammar decides"]
        form = {"format": {"type": "json_schema", "schema": {"enum": ["red"]}}}
        message = client.messages.create(model="tiny", max_tokens=50, messages=HELLO, output_config=form)
        assert message.content[0].text == '"red"'


class TestTools:
    def test_a_call(self, client: Any, script: ScriptedScheduler, qwen: LanguageModel) -> None:
        script.answers = [f"Let me see.\n{CALL}"]
        message = client.messages.create(model="tiny", max_tokens=200, messages=HELLO, tools=[WEATHER])
        assert [block.type for block in message.content] == ["text", "tool_use"]
        assert message.content[0].text == "Let me see."
        assert (message.content[1].name, message.content[1].input) == ("weather", {"city": "Rome"})
        assert message.stop_reason == "tool_use"
        assert '<tools>\n{"type": "function", "function": {"name": "weather"' in prompt_of(qwen, script)

    def test_results_go_back_in_the_order_of_the_calls(
        self, client: Any, script: ScriptedScheduler, qwen: LanguageModel
    ) -> None:
        script.answers = ["It is warm."]
        calls = [
            {"type": "tool_use", "id": name, "name": "weather", "input": {"city": name}} for name in "ab"
        ]
        results = [
            {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "20"}]},
            {"type": "tool_result", "tool_use_id": "a", "content": "down", "is_error": True},
            {"type": "text", "text": "Well?"},
        ]
        client.messages.create(
            model="tiny",
            max_tokens=50,
            tools=[WEATHER],
            messages=[*HELLO, {"role": "assistant", "content": calls}, {"role": "user", "content": results}],
        )
        assert prompt_of(qwen, script).endswith(
            "<|im_start|>assistant\n"
            '<tool_call>\n{"name": "weather", "arguments": {"city": "a"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "weather", "arguments": {"city": "b"}}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\n<tool_response>\nError: down\n</tool_response>\n"
            "<tool_response>\n20\n</tool_response><|im_end|>\n"
            "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
        )

    @pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
    def test_a_required_call_is_enforced(
        self, client: Any, script: ScriptedScheduler, choice: dict[str, str]
    ) -> None:
        script.answers = ["I will not call"]
        other = {"name": "other", "input_schema": {"type": "object"}}
        tools = [WEATHER, other] if choice["type"] == "tool" else [WEATHER]
        message = client.messages.create(
            model="tiny",
            max_tokens=290,
            messages=HELLO,
            tools=tools,
            tool_choice={**choice, "disable_parallel_tool_use": True},
        )
        assert [block.type for block in message.content] == ["tool_use"]
        assert message.content[0].name == "weather"
        assert len(message.content[0].input["city"]) <= 3

    def test_none_leaves_the_tools_out(
        self, client: Any, script: ScriptedScheduler, qwen: LanguageModel
    ) -> None:
        script.answers = [CALL]
        message = client.messages.create(
            model="tiny", max_tokens=200, messages=HELLO, tools=[WEATHER], tool_choice={"type": "none"}
        )
        assert [block.type for block in message.content] == ["text"]
        assert "weather" not in prompt_of(qwen, script)

    def test_one_call_only_when_parallel_ones_are_off(self, client: Any, script: ScriptedScheduler) -> None:
        for parallel in (True, False):
            script.answers = [f"{CALL}\n{CALL}"]
            message = client.messages.create(
                model="tiny",
                max_tokens=290,
                messages=HELLO,
                tools=[WEATHER],
                tool_choice={"type": "auto", "disable_parallel_tool_use": not parallel},
            )
            assert sum(block.type == "tool_use" for block in message.content) == (2 if parallel else 1)

    def test_a_call_that_is_cut_off_is_text(
        self, client: Any, script: ScriptedScheduler, qwen: LanguageModel
    ) -> None:
        script.answers = [CALL]
        message = client.messages.create(
            model="tiny", max_tokens=len(qwen.tokenizer.encode(CALL)) - 8, messages=HELLO, tools=[WEATHER]
        )
        assert message.stop_reason == "max_tokens"
        assert [block.type for block in message.content] == ["text"]
        assert CALL.startswith(message.content[0].text)


class TestStreaming:
    def test_events_in_their_order(self, server: LiveServer, client: Any, script: ScriptedScheduler) -> None:
        script.answers = [f"Hm.\n{CALL}\n{CALL}"]
        script.cached_tokens = 3
        body = {"model": "tiny", "max_tokens": 290, "messages": HELLO, "tools": [WEATHER], "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/messages", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in response.iter_lines() if line]
        names = [line.removeprefix("event: ") for line in lines[::2]]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
        assert [event["type"] for event in events] == names
        assert [event["index"] for event in events if "index" in event] == sorted(
            event["index"] for event in events if "index" in event
        )
        shape = [name for i, name in enumerate(names) if i == 0 or names[i - 1] != name]
        block = ["content_block_start", "content_block_delta", "content_block_stop"]
        assert shape == ["message_start", *block * 3, "message_delta", "message_stop"]
        start = events[0]["message"]
        assert (start["content"], start["stop_reason"]) == ([], None)
        assert start["usage"]["cache_read_input_tokens"] == 3
        blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
        assert [block["type"] for block in blocks] == ["text", "tool_use", "tool_use"]
        assert blocks[1]["id"] != blocks[2]["id"]
        assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}

    def test_the_official_client_puts_them_together(
        self, client: Any, script: ScriptedScheduler, qwen: LanguageModel
    ) -> None:
        script.answers = [f"Hm 🚀.\n{CALL}"]
        with client.messages.stream(model="tiny", max_tokens=290, messages=HELLO, tools=[WEATHER]) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        assert text == "Hm 🚀."
        assert message.content[0].text == "Hm 🚀."
        assert message.content[1].input == {"city": "Rome"}
        assert message.stop_reason == "tool_use"
        assert message.usage.output_tokens == len(qwen.tokenizer.encode(f"Hm 🚀.\n{CALL}"))

    def test_an_error_on_the_way_is_an_event(self, client: Any, script: ScriptedScheduler) -> None:
        script.answers = ["Hello there"]
        script.error = ResourceError("no more memory")
        with (
            pytest.raises(anthropic.APIStatusError, match="no more memory") as error,
            client.messages.stream(model="tiny", max_tokens=20, messages=HELLO) as stream,
        ):
            stream.until_done()
        assert error.value.body["error"]["type"] == "overloaded_error"

    def test_a_reader_who_leaves_ends_the_work(self, client: Any, script: ScriptedScheduler) -> None:
        import time

        script.answers = ["word " * 200]
        script.pause = 0.01
        before = script.cancelled
        try:
            with client.messages.stream(model="tiny", max_tokens=290, messages=HELLO) as stream:
                next(iter(stream.text_stream))
            deadline = time.monotonic() + 10
            while script.cancelled == before:
                assert time.monotonic() < deadline, "the request goes on"
                time.sleep(0.01)
        finally:
            script.pause = 0.0


def test_count_tokens(client: Any, script: ScriptedScheduler) -> None:
    script.answers = ["ok"]
    given: dict[str, Any] = {"model": "tiny", "messages": HELLO, "system": "Be kind.", "tools": [WEATHER]}
    count = client.messages.count_tokens(**given)
    used = client.messages.create(max_tokens=9, **given).usage.input_tokens
    assert count.input_tokens == used
    assert client.messages.count_tokens(model="tiny", messages=HELLO).input_tokens < used


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"messages": []}, "messages"),
            ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.*'user', 'assistant'"),
            ({"messages": [{"role": "user", "content": []}]}, "empty"),
            (
                {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
                r"messages\.0\.content\.0 .*'text', 'tool_result'",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
                r"content\.0\.text is 1",
            ),
            (
                {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
                "no call 'x'",
            ),
            (
                {
                    "messages": [
                        *HELLO,
                        {
                            "role": "assistant",
                            "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}}],
                        },
                    ]
                },
                "needs a result",
            ),
            (
                {
                    "messages": [
                        *HELLO,
                        {
                            "role": "assistant",
                            "content": [{"type": "tool_use", "id": "i", "name": "f", "input": {}}],
                        },
                        *HELLO,
                    ]
                },
                "'i' has no result",
            ),
            ({"max_tokens": 0}, "max_tokens is 0"),
            ({"max_tokens": 301}, "this server allows up to 300"),
            ({"max_tokens": "9"}, "max_tokens"),
            ({"temperature": -1}, "temperature"),
            ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.type"),
            ({"output_config": {"effort": "low"}}, "output_config.effort"),
            (
                {"output_config": {"format": {"type": "json_schema", "schema": {"type": "objct"}}}},
                "refused.*objct",
            ),
            ({"mcp_servers": []}, "'mcp_servers' is not supported"),
            ({"service_tier": "auto"}, "'service_tier' is not supported"),
            ({"nonsense": 1}, "no parameter 'nonsense'"),
            ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, r"tools\.0\.type"),
            ({"tool_choice": {"type": "any"}}, "no tools"),
            ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "nope"}}, "'nope'.*'weather'"),
            ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice"),
            ({"tools": [{**WEATHER, "strict": True, "input_schema": {"not": {}}}]}, "weather.*|refused"),
        ],
    )
    def test_name_what_is_wrong(self, client: Any, change: dict[str, Any], message: str) -> None:
        body = {"model": "tiny", "max_tokens": 9, "messages": HELLO} | change
        with pytest.raises(anthropic.BadRequestError, match=message) as error:
            client.post("/v1/messages", body=body, cast_to=object)
        assert error.value.body["type"] == "error"
        assert error.value.body["error"]["type"] == "invalid_request_error"

    def test_an_unknown_model(self, client: Any) -> None:
        with pytest.raises(anthropic.NotFoundError, match=r"no model 'other'.*tiny"):
            client.messages.create(model="other", max_tokens=9, messages=HELLO)

    def test_a_wrong_key(self, qwen: LanguageModel) -> None:
        with LiveServer(qwen, ScriptedScheduler(qwen, ["ok"]), api_keys=["secret"]) as server:
            with pytest.raises(anthropic.AuthenticationError):
                anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0).messages.create(
                    model="tiny", max_tokens=9, messages=HELLO
                )
            right = anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0)
            assert right.messages.create(model="tiny", max_tokens=9, messages=HELLO).content[0].text == "ok"


def test_the_engine_behind_it(qwen: LanguageModel, load_tiny: Callable[..., LanguageModel]) -> None:
    own = load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024)
    with LiveServer(own) as server:
        client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
        message = client.messages.create(
            model="tiny", max_tokens=12, messages=HELLO, extra_body={"temperature": 0}
        )
        expected = qwen.generate(HELLO, max_tokens=12, temperature=0)
        assert message.content[0].text == expected.text
        assert message.stop_reason == "max_tokens"
        choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
        forced = client.messages.create(
            model="tiny", max_tokens=200, messages=HELLO, tools=[WEATHER], tool_choice=choice
        )
        assert forced.content[0].name == "weather"
        assert len(forced.content[0].input["city"]) <= 3
