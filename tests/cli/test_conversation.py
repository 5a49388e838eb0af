"""A conversation's settings, files and /commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitqwen.cli.chat_commands import NAMES, Commands, parse
from bitqwen.cli.conversation import SETTINGS, Conversation
from bitqwen.errors import ModelFileError, UsageError


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Grüße?"},
            {"role": "assistant", "content": "Ja 👋"},
        ],
        {"temperature": 0.5},
    )


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def commands(conversation: Conversation, said: list[str]) -> Commands:
    return Commands(conversation, statistics=lambda: "fast", say=said.append)


def test_messages_are_changed_in_place(conversation: Conversation) -> None:
    messages = conversation.messages
    conversation.system = None
    assert conversation.system is None
    conversation.system = "Be long."
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert conversation.take_back() == "Grüße?"
    assert conversation.take_back() is None
    assert messages == [{"role": "system", "content": "Be long."}]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_an_option_of_the_library(conversation: Conversation, name: str) -> None:
    from bitqwen.generation.options import split_options
    from bitqwen.generation.sampling import SamplingParams

    conversation.set(name, "1")
    assert conversation.settings[name] == 1
    split_options({name: conversation.settings[name]}, SamplingParams())  # type: ignore[misc]
    conversation.set(name, "default")
    assert name not in conversation.settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temprature", "1"),
        ("top_k", "1.5"),
        ("top_k", "-1"),
        ("top_p", "7"),
        ("temperature", "nan"),
        ("temperature", "warm"),
        ("max_tokens", "0"),
        ("seed", "-3"),
    ],
)
def test_wrong_settings_change_nothing(conversation: Conversation, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        conversation.set(name, value)
    assert conversation.settings == {"temperature": 0.5}


def test_save_and_load(conversation: Conversation, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    conversation.save(file)
    other = Conversation([], {"top_k": 3})
    messages = other.messages
    other.load(file)
    assert messages == conversation.messages
    assert other.settings == {"temperature": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "7",
        "{}",
        '{"messages": 3, "settings": {}}',
        '{"messages": [{"role": "root", "content": ""}], "settings": {}}',
        '{"messages": [{"role": "user", "content": 5}], "settings": {}}',
        '{"messages": ["x"], "settings": {}}',
        '{"messages": [], "settings": {"colour": 1}}',
        '{"messages": [], "settings": {"top_p": 9}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(
    conversation: Conversation, tmp_path: Path, text: str
) -> None:
    before = json.dumps(conversation.messages)
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ModelFileError):
        conversation.load(tmp_path / "c.json")
    assert json.dumps(conversation.messages) == before
    assert conversation.settings == {"temperature": 0.5}


def test_nothing_half_written(conversation: Conversation, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="Cannot write"):
        conversation.save(tmp_path / "no such folder" / "c.json")
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(ModelFileError, match="Cannot write"):
        conversation.save(target)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_parse() -> None:
    assert parse("/set top_k  5 ") == ("/set", "top_k  5")
    assert parse("/bye") == ("/exit", "")
    with pytest.raises(UsageError, match="/foo") as caught:
        parse("/foo bar")
    assert "/help" in caught.value.hint


def test_help_names_every_command(commands: Commands, said: list[str]) -> None:
    commands.run("/help", "")
    assert all(name in said[0] for name in NAMES)


def test_commands(commands: Commands, conversation: Conversation, said: list[str], tmp_path: Path) -> None:
    commands.run("/set", "top_p 0.25")
    assert "top_p 0.25" in said[-1]
    commands.run("/stats", "")
    assert said[-1] == "fast"
    commands.run("/system", "Speak French.")
    assert conversation.system == "Speak French."
    commands.run("/system", "")
    assert said[-1] == "System prompt: Speak French."
    commands.run("/save", str(tmp_path / "c.json"))
    commands.run("/clear", "")
    assert conversation.messages == [{"role": "system", "content": "Speak French."}]
    commands.run("/load", str(tmp_path / "c.json"))
    assert conversation.messages[-1]["content"] == "Ja 👋"
    assert conversation.settings["top_p"] == 0.25


@pytest.mark.parametrize(("name", "argument"), [("/set", "top_k"), ("/save", ""), ("/load", "")])
def test_commands_that_lack_something(commands: Commands, name: str, argument: str) -> None:
    with pytest.raises(UsageError, match=name):
        commands.run(name, argument)
