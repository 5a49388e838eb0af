"""Programs that people point at such a server, unmodified (extra: clients)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from live import LiveServer
from scripted import ScriptedScheduler

from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.language_model import LanguageModel

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def script(load_tiny: Callable[..., LanguageModel]) -> ScriptedScheduler:
    return ScriptedScheduler(load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024))


@pytest.fixture
def url(script: ScriptedScheduler, load_tiny: Callable[..., LanguageModel]) -> Iterator[str]:
    script.answers = []
    model = load_tiny(chat_template=ChatTemplate().source, threads=1, context=1024)
    with LiveServer(model, script) as server:
        yield f"{server.url}/v1"


def test_langchain(url: str, script: ScriptedScheduler) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    script.answers = ["Good day.", CALL, "one two"]
    chat = langchain.ChatOpenAI(model="tiny", base_url=url, api_key="none", max_retries=0)
    assert chat.invoke("Hello").content == "Good day."
    tool = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}},
    }
    (call,) = chat.bind_tools([tool]).invoke("Weather?").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Rome"})
    assert "".join(chunk.content for chunk in chat.stream("Go on")) == "one two"
