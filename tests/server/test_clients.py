"""Programs that people point at such a server, unmodified; skipped where they are not (extra: clients)."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
from live import LiveServer
from pydantic import BaseModel, ConfigDict
from scripted import ScriptedScheduler

from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.language_model import LanguageModel

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]


class Animal(BaseModel):
    """What the answers that are bound to a form must be."""

    model_config = ConfigDict(extra="forbid")
    name: Literal["fox", "dog"]
    wild: bool


@pytest.fixture(scope="module")
def model(load_tiny: Callable[..., LanguageModel]) -> LanguageModel:
    return load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024)


@pytest.fixture
def script(model: LanguageModel) -> ScriptedScheduler:
    return ScriptedScheduler(model)


@pytest.fixture
def url(script: ScriptedScheduler, model: LanguageModel) -> Iterator[str]:
    """A server whose model says what the test's script says."""
    with LiveServer(model, script) as server:
        yield f"{server.url}/v1"


@pytest.fixture
def own(load_tiny: Callable[..., LanguageModel]) -> Iterator[str]:
    """A server whose model says what it likes, bound by what is asked for alone."""
    with LiveServer(load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024)) as server:
        yield f"{server.url}/v1"


def test_langchain(url: str, script: ScriptedScheduler) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    script.answers = ["Good day.", CALL, "one two", '{"name": "fox", "wild": true}']
    chat = langchain.ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0)
    assert chat.invoke("Hello").content == "Good day."
    (call,) = chat.bind_tools([TOOL]).invoke("Weather?").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
    assert "".join(chunk.content for chunk in chat.stream("Go on")) == "one two"
    animal = chat.with_structured_output(Animal, method="json_schema").invoke("Which one?")
    assert animal == Animal(name="fox", wild=True)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_instructor(own: str, mode: str) -> None:
    instructor = pytest.importorskip("instructor", reason="instructor is not installed")
    from openai import OpenAI

    client = instructor.from_openai(
        OpenAI(base_url=own, api_key="none", max_retries=0), mode=getattr(instructor.Mode, mode)
    )
    animal = client.chat.completions.create(
        model="tiny", messages=HELLO, response_model=Animal, max_retries=0, temperature=0, max_tokens=100
    )
    assert isinstance(animal, Animal)


@pytest.mark.filterwarnings("ignore:Item:UserWarning")
def test_litellm(url: str, script: ScriptedScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch a list of prices otherwise
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    script.answers = ["Good day.", "one two", "three", CALL]
    asked = {"model": "openai/tiny", "messages": HELLO, "api_base": url, "api_key": "none", "max_retries": 0}
    whole = litellm.completion(**asked)
    assert whole.choices[0].message.content == "Good day."
    assert whole.usage.completion_tokens > 1
    pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(**asked, stream=True)]
    assert "".join(pieces) == "one two"
    assert asyncio.run(litellm.acompletion(**asked)).choices[0].message.content == "three"
    (call,) = litellm.completion(**asked, tools=[TOOL]).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Rome"}
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**asked | {"model": "openai/huge"})


def test_litellm_speaks_anthropic_s_interface_too(url: str, script: ScriptedScheduler) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not installed")
    script.answers = ["Good day."]
    made = litellm.completion(
        model="anthropic/tiny",
        messages=HELLO,
        api_base=url.removesuffix("/v1"),
        api_key="none",
        max_retries=0,
        max_tokens=20,
    )
    assert made.choices[0].message.content == "Good day."


def test_anthropic_async_and_parsed(own: str) -> None:
    from anthropic import AsyncAnthropic

    async def run() -> tuple[Any, str, Any]:
        async with AsyncAnthropic(base_url=own.removesuffix("/v1"), api_key="none", max_retries=0) as client:
            asked: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 100}
            asked |= {"extra_body": {"temperature": 0}}
            parsed = client.messages.parse(**asked, output_format=Animal)
            whole = client.messages.create(**asked)

            async def streamed() -> str:
                async with client.messages.stream(**asked) as stream:
                    return "".join([text async for text in stream.text_stream])

            return await asyncio.gather(whole, streamed(), parsed)  # type: ignore[return-value]

    whole, text, parsed = asyncio.run(run())
    assert whole.content[0].text == text
    assert isinstance(parsed.parsed_output, Animal)


@pytest.mark.skipif(find_spec("llm") is None, reason="llm is not installed")
def test_the_llm_command(own: str, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- {{model_id: local, model_name: tiny, api_base: '{own}', supports_schema: true}}\n"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}

    def llm(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    options = ("-m", "local", "-o", "temperature", "0", "-o", "max_tokens", "100")
    streamed = llm(*options, "Hello")
    assert streamed.strip()
    assert llm(*options, "--no-stream", "Hello") == streamed
    Animal.model_validate_json(llm(*options, "--schema", json.dumps(Animal.model_json_schema()), "Hello"))
