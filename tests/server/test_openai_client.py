"""The official client, unmodified."""

from __future__ import annotations

import asyncio
import json
from typing import Literal

import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, ConfigDict
from scripted import ScriptedScheduler

MESSAGES = [{"role": "user", "content": "What is a fox?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture
def url(start_app) -> str:
    return start_app(api_keys=["sesame"]).live.url + "/v1"


@pytest.fixture
def openai(url) -> OpenAI:
    return OpenAI(base_url=url, api_key="sesame", max_retries=0)


def test_chat_whole_and_streamed(openai):
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, "logprobs": True}
    whole = openai.chat.completions.create(**asked)
    assert whole.usage.completion_tokens == 12
    assert len(whole.choices[0].logprobs.content) == 12
    stream = openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 12


def test_many_at_once(url):
    async def run():
        async with AsyncOpenAI(base_url=url, api_key="sesame", max_retries=0) as client:

            async def one(seed):
                stream = await client.chat.completions.create(
                    model="tiny", messages=MESSAGES, max_tokens=10, temperature=1.5, seed=seed, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in range(8))), await one(5)

    together, alone = asyncio.run(run())
    assert together[5] == alone
    assert len(set(together)) > 1


def test_leaving_a_stream_early(openai, start_app):
    client = start_app(stream_buffer=2)
    own = OpenAI(base_url=client.live.url + "/v1", api_key="none")
    with own.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
        next(iter(stream))
    while client.live.served.scheduler.running:
        pass


def test_parse_gives_an_object(openai):
    class Animal(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: Literal["fox", "dog"]
        wild: bool

    made = openai.beta.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Animal, max_tokens=100, temperature=0
    )
    assert made.choices[0].message.parsed.name in {"fox", "dog"}


def test_tools_whole_and_streamed(start_app, language_model):
    scheduler = ScriptedScheduler(language_model, [CALL, CALL])
    client = OpenAI(base_url=start_app(scheduler=scheduler).live.url + "/v1", api_key="none")
    made = client.chat.completions.create(model="tiny", messages=MESSAGES, tools=TOOLS).choices[0]
    assert made.finish_reason == "tool_calls"
    assert json.loads(made.message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    with client.beta.chat.completions.stream(model="tiny", messages=MESSAGES, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.name == "weather"
    assert json.loads(final.message.tool_calls[0].function.arguments) == {"city": "Oslo"}


def test_completions_embeddings_and_models(openai):
    text = openai.completions.create(model="tiny", prompt="the fox", max_tokens=4, logprobs=1, temperature=0)
    assert len(text.choices[0].logprobs.tokens) == 4
    vectors = openai.embeddings.create(model="tiny", input=["fox", "dog"])  # asks for base64
    assert sum(value * value for value in vectors.data[0].embedding) == pytest.approx(1, abs=1e-4)
    assert [model.id for model in openai.models.list()] == ["tiny"]


def test_errors_are_the_clients_own(openai, url):
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model="tiny", messages=MESSAGES, reasoning_effort="low")
    assert (refused.value.param, refused.value.code) == ("reasoning_effort", "unsupported_parameter")
    with pytest.raises(NotFoundError):
        openai.chat.completions.create(model="gpt-5", messages=MESSAGES)
    with pytest.raises(AuthenticationError):
        OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(APIStatusError):
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "fox " * 2000}])
