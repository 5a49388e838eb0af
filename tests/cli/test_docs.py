"""docs/cli.md is what the verbs say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_docs_are_up_to_date():
    result = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate_cli.py", "--check"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_docs_name_every_option():
    import typer.main

    from bitqwen.cli.app import app

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    root = typer.main.get_command(app)
    verbs = dict(root.commands)  # type: ignore[attr-defined]
    for name in [name for name, command in verbs.items() if hasattr(command, "commands")]:
        verbs |= {f"{name} {verb}": command for verb, command in verbs.pop(name).commands.items()}
    for verb, command in verbs.items():
        section = page.split(f"\n## bitqwen {verb}", 1)[1].split("\n## ", 1)[0]
        for parameter in command.params:
            for spelling in parameter.opts:
                if spelling.startswith("--") and spelling != "--help":
                    assert f"`{spelling}`" in section, (verb, spelling)
