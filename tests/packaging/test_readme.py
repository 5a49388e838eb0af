"""README's commands are the ones that are meant, and every command in it parses."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_the_two_commands() -> None:
    assert blocks("bash") == ["pip install . && bitqwen demo\n", "pip install '.[test]' && pytest\n"]


def commands() -> list[list[str]]:
    text = README.read_text(encoding="utf-8")
    lines = [
        line for block in blocks("console") for line in block.splitlines() if line.startswith("$ bitqwen ")
    ]
    inline = re.findall(r"`(bitqwen [^`]+)`", text)
    return [shlex.split(line.removeprefix("$ "))[1:] for line in lines + inline]


def test_there_are_commands() -> None:
    assert len(commands()) >= 3


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_is_one_that_the_program_knows(arguments: list[str]) -> None:
    import typer.main

    from bitqwen.cli.app import app

    verb = typer.main.get_command(app).commands[arguments[0]]  # type: ignore[attr-defined]
    spellings = {name for parameter in verb.params for name in parameter.opts}
    assert {argument for argument in arguments[1:] if argument.startswith("-")} <= spellings


def test_the_python_example_runs(tiny_checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    from bitqwen.convert import convert

    (example,) = blocks("python")
    assert len(example.splitlines()) == 4
    # A context that ends the tiny model's answer soon: its random weights may never choose to stop.
    convert(tiny_checkpoint(context=128).folder, tmp_path / "qwen.gguf", "f16")
    result = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
