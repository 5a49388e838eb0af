"""Chat completions: every accepted field shows its effect, everything else is refused by name."""

from __future__ import annotations

import json

import httpx
import pytest
from scripted import ScriptedScheduler

MESSAGES = [{"role": "user", "content": "What is a fox?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture
def ask(start_app):
    """``await ask(**fields)``: one chat completion of the tiny model, greedy and short unless told."""
    client = start_app()

    def call(**fields):
        body = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 12} | fields
        return client.post("/v1/chat/completions", {k: v for k, v in body.items() if v is not None})

    return call


def text(response: httpx.Response, choice: int = 0) -> str:
    assert response.status_code == 200, response.text
    return response.json()["choices"][choice]["message"]["content"]


def chunks(response: httpx.Response) -> list[dict]:
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


def joined(made: list[dict], choice: int = 0) -> str:
    deltas = (c["delta"] for chunk in made for c in chunk["choices"] if c["index"] == choice)
    return "".join(delta.get("content") or "" for delta in deltas)


class TestAnswers:
    def test_the_answer_is_what_the_library_gives(self, ask, language_model):
        response = ask()
        expected = language_model.generate(MESSAGES, max_tokens=12, temperature=0)
        assert text(response) == expected.text
        body = response.json()
        assert body["object"] == "chat.completion"
        assert body["model"] == "tiny"
        assert body["choices"][0]["finish_reason"] == "length"
        usage = body["usage"]
        assert usage["prompt_tokens"] == expected.timings.prompt_tokens
        assert usage["completion_tokens"] == 12
        assert usage["total_tokens"] == usage["prompt_tokens"] + 12

    def test_a_stream_is_the_same_in_pieces(self, ask):
        made = chunks(ask(stream=True))
        assert joined(made) == text(ask())
        assert made[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [chunk["choices"][0]["finish_reason"] for chunk in made][-2:] == [None, "length"]
        assert len({chunk["id"] for chunk in made}) == 1
        assert all("usage" not in chunk for chunk in made)

    def test_include_usage_ends_with_the_counts(self, ask):
        made = chunks(ask(stream=True, stream_options={"include_usage": True}))
        assert made[-1]["choices"] == []
        assert made[-1]["usage"]["completion_tokens"] == 12
        assert all(chunk["usage"] is None for chunk in made[:-1])

    def test_the_second_turn_takes_the_first_from_the_cache(self, ask):
        first = ask()
        messages = [*MESSAGES, {"role": "assistant", "content": text(first)}, *MESSAGES]
        usage = ask(messages=messages).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] >= first.json()["usage"]["prompt_tokens"]

    def test_n_choices_have_their_own_seeds(self, ask):
        several = ask(n=3, temperature=1.5, seed=7, top_p=1.0, top_k=0)
        for choice in range(3):
            alone = ask(temperature=1.5, seed=7 + choice, top_p=1.0, top_k=0)
            assert text(several, choice) == text(alone)
        made = chunks(ask(n=3, temperature=1.5, seed=7, top_p=1.0, top_k=0, stream=True))
        assert [joined(made, choice) for choice in range(3)] == [text(several, c) for c in range(3)]

    def test_a_negative_seed_is_a_seed(self, ask):
        hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0}
        assert text(ask(seed=-3, **hot)) == text(ask(seed=-3, **hot))

    def test_timings_name_the_seed_that_gives_the_text_again(self, ask):
        hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0}
        first = ask(**hot)
        assert text(ask(seed=first.json()["timings"]["seed"], **hot)) == text(first)

    def test_stop_ends_before_the_string(self, ask):
        whole = text(ask())
        response = ask(stop=whole[3:6])
        assert text(response) == whole[: whole.find(whole[3:6])]
        assert response.json()["choices"][0]["finish_reason"] == "stop"
        assert joined(chunks(ask(stop=[whole[3:6], "zzz"], stream=True))) == text(response)

    def test_logprobs_tell_each_token(self, ask):
        response = ask(logprobs=True, top_logprobs=3)
        entries = response.json()["choices"][0]["logprobs"]["content"]
        assert len(entries) == 12
        assert b"".join(bytes(e["bytes"]) for e in entries).decode("utf-8", "replace") == text(response)
        for entry in entries:
            assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] <= 0  # greedy
            assert len(entry["top_logprobs"]) == 3
        streamed = [
            entry
            for chunk in chunks(ask(logprobs=True, top_logprobs=3, stream=True))
            for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert streamed == entries
        assert ask().json()["choices"][0]["logprobs"] is None

    @pytest.mark.parametrize(
        "fields",
        [
            {"presence_penalty": 2.0},
            {"frequency_penalty": 2.0},
            {"repetition_penalty": 3.0},
            {"temperature": 3.0, "seed": 1, "top_p": 1.0, "top_k": 0},
        ],
    )
    def test_sampling_settings_change_the_text(self, ask, fields):
        assert text(ask(max_tokens=60, **fields)) != text(ask(max_tokens=60))

    @pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
    def test_filters_that_keep_one_token_make_any_temperature_greedy(self, ask, fields):
        plain = {"repetition_penalty": 1.0, "temperature": 5.0, "top_p": 1.0, "top_k": 0}
        assert text(ask(**plain | fields)) == text(ask(repetition_penalty=1.0))

    def test_logit_bias_forces_and_forbids(self, ask, language_model):
        token = language_model.tokenizer.encode("fox")[0]
        forced = text(ask(logit_bias={str(token): 100}, max_tokens=2))
        assert forced == language_model.tokenizer.decode([token, token])

    def test_stop_token_ids_and_ignore_eos(self, ask, language_model):
        first = ask(logprobs=True).json()["choices"][0]["logprobs"]["content"][0]
        token = language_model.tokenizer.encode(first["token"])[0]
        assert text(ask(stop_token_ids=[token])) == ""
        eos = language_model.tokenizer.eos_id
        assert text(ask(logit_bias={str(eos): 100})) == ""
        assert text(ask(logit_bias={str(eos): 100}, ignore_eos=True)) != ""

    def test_max_completion_tokens_is_max_tokens(self, ask):
        assert ask(max_tokens=None, max_completion_tokens=5).json()["usage"]["completion_tokens"] == 5

    def test_without_max_tokens_the_context_is_the_end(self, ask, language_model):
        usage = ask(max_tokens=None).json()["usage"]
        assert usage["total_tokens"] == language_model.context + 1  # the last token need not fit in

    def test_continue_final_message_goes_on_with_it(self, ask, language_model):
        messages = [*MESSAGES, {"role": "assistant", "content": "A fox is"}]
        expected = language_model.generate(
            messages, continue_final_message=True, max_tokens=12, temperature=0
        )
        assert text(ask(messages=messages, continue_final_message=True)) == expected.text

    def test_roles_parts_and_names_reach_the_template(self, ask):
        parts = [{"role": "user", "content": [{"type": "text", "text": "What is a fox?"}], "name": "ada"}]
        assert text(ask(messages=parts)) == text(ask())
        system = ask(messages=[{"role": "system", "content": "Be brief."}, *MESSAGES])
        developer = ask(messages=[{"role": "developer", "content": "Be brief."}, *MESSAGES])
        assert text(system) == text(developer) != text(ask())


class TestConstraints:
    def test_json_object(self, ask):
        answer = ask(response_format={"type": "json_object"}, max_tokens=400, temperature=1.0, seed=2)
        choice = answer.json()["choices"][0]
        assert choice["finish_reason"] == "length" or isinstance(json.loads(text(answer)), dict)
        assert text(answer).lstrip().startswith("{")

    def test_json_schema(self, ask):
        schema = {
            "type": "object",
            "properties": {"animal": {"enum": ["fox", "dog"]}},
            "required": ["animal"],
            "additionalProperties": False,
        }
        for asked in (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": schema, "strict": True},
                }
            },
            {"guided_json": schema},
        ):
            answer = ask(**asked, max_tokens=60)
            assert json.loads(text(answer))["animal"] in {"fox", "dog"}
            assert answer.json()["choices"][0]["finish_reason"] == "stop"

    def test_regex_choice_and_grammar(self, ask):
        assert text(ask(guided_regex="[0-9]{3}")).isdigit()
        assert text(ask(guided_choice=["red", "green"])) in {"red", "green"}
        assert text(ask(guided_grammar='start: "a" | "b"')) in {"a", "b"}

    def test_a_refused_schema_says_why(self, ask):
        response = ask(guided_json={"type": "nonsense"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "guided_json"
        assert "nonsense" in response.json()["error"]["message"]


class TestTools:
    def test_a_required_call_is_enforced(self, ask):
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            answer = ask(tools=[WEATHER], tool_choice=choice, max_tokens=100, parallel_tool_calls=False)
            made = answer.json()["choices"][0]
            assert made["finish_reason"] == "tool_calls"
            (call,) = made["message"]["tool_calls"]
            assert call["function"]["name"] == "weather"
            assert json.loads(call["function"]["arguments"])["city"] in {"Paris", "Oslo"}

    def test_a_streamed_call_comes_in_pieces(self, ask):
        asked = {
            "tools": [WEATHER],
            "tool_choice": "required",
            "max_tokens": 100,
            "parallel_tool_calls": False,
        }
        made = chunks(ask(**asked, stream=True))
        calls = [call for c in made for call in c["choices"][0]["delta"].get("tool_calls", [])]
        assert calls[0]["id"].startswith("call_")
        assert calls[0]["function"] == {"name": "weather", "arguments": ""}
        arguments = "".join(call["function"]["arguments"] for call in calls)
        whole = ask(**asked).json()["choices"][0]["message"]["tool_calls"][0]
        assert arguments == whole["function"]["arguments"]
        assert made[-1]["choices"][0]["finish_reason"] == "tool_calls"

    def test_text_beside_calls(self, start_app, language_model):
        call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
        scheduler = ScriptedScheduler(language_model, [f"I look.\n{call}", f"I look.\n{call}"])
        client = start_app(scheduler=scheduler)
        body = {"model": "tiny", "messages": MESSAGES, "tools": [WEATHER]}
        made = client.post("/v1/chat/completions", body).json()["choices"][0]
        assert made["message"]["content"] == "I look."
        assert made["message"]["tool_calls"][0]["function"]["name"] == "weather"
        refused = client.post("/v1/chat/completions", body | {"tool_choice": "none"}).json()["choices"][0]
        assert "<tool_call>" in refused["message"]["content"]
        assert "tool_calls" not in refused["message"]

    def test_earlier_calls_and_results_reach_the_template(self, ask):
        messages = [
            *MESSAGES,
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "rain"},
        ]
        assert text(ask(messages=messages)) != text(ask())


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"reasoning_effort": "low"}, "reasoning_effort", "not supported"),
        ({"frequencypenalty": 1}, "frequencypenalty", "no parameter"),
        ({"store": True}, "store", "True"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"temperature": -1}, "temperature", "-1"),
        ({"top_p": 0}, "top_p", "0"),
        ({"n": 9}, "n", "1 to 8"),
        ({"max_tokens": 0}, "max_tokens", "0"),
        ({"messages": []}, "messages", "[]"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "missing"),
        ({"messages": [{"role": "robot", "content": ""}]}, "messages.0", "robot"),
        ({"messages": [{"role": "user", "content": "", "mood": 1}]}, "messages.0.mood", "no parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            None,
            "image_url",
        ),
        ({"model": "gpt-5"}, "model", "there is: tiny"),
        ({"stop": [""]}, None, "stop"),
        ({"logit_bias": {"fox": 1}}, None, "'fox'"),
        ({"logit_bias": {"100000": 1}}, None, "100000"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options"),
        ({"top_logprobs": 2}, None, "top_logprobs"),
        ({"tool_choice": "required"}, None, "tool_choice"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}},
            None,
            "no",
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "cannot be followed at once"),
        ({"guided_regex": "("}, "guided_regex", "refused"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(ask, fields, param, message):
    response = ask(**fields)
    assert response.status_code == (404 if "model" in fields else 400), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert message in error["message"]


def test_the_prompt_may_not_be_longer_than_the_context(ask, language_model):
    messages = [{"role": "user", "content": "fox " * 2000}]
    response = ask(messages=messages)
    assert response.status_code == 400
    error = response.json()["error"]
    assert f"{len(language_model.encode_prompt(messages))} tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"
    assert f"the context holds {language_model.context}" in error["message"]


def test_an_error_within_a_stream_is_its_last_event(start_app, language_model):
    from bitqwen.errors import ResourceError

    scheduler = ScriptedScheduler(language_model, ["a fox"])
    scheduler.error = ResourceError("the KV cache is full")
    client = start_app(scheduler=scheduler)
    response = client.post("/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, "stream": True})
    last = [line for line in response.text.splitlines() if line][-1]
    assert "the KV cache is full" in json.loads(last.removeprefix("data: "))["error"]["message"]


def test_a_limit_on_max_tokens(start_app):
    client = start_app(max_tokens=6)
    body = {"model": "tiny", "messages": MESSAGES, "temperature": 0}
    assert client.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"] == 6
    refused = client.post("/v1/chat/completions", body | {"max_tokens": 7})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


def test_aliases_name_the_same_model(start_app):
    client = start_app(alias=["gpt-4o"])
    body = {"model": "gpt-4o", "messages": MESSAGES, "max_tokens": 1}
    assert client.post("/v1/chat/completions", body).json()["model"] == "tiny"
