#!/usr/bin/env python3
"""Writes docs/cli.md from the command line itself: python docs/generate_cli.py [--check]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import typer.main

from bitqwen.cli.app import app
from bitqwen.cli.options import EXIT_CODES

PAGE = Path(__file__).with_name("cli.md")

HEAD = """# Command line

<!-- Written by docs/generate_cli.py from the verbs' own help. Change src/bitqwen/cli/ and run it again. -->

Results go to stdout, all else to stderr. An error is two lines, what is wrong and what to do next; `--debug`
adds the stack trace. `bitqwen --install-completion` sets up completion for your shell.
"""


def page() -> str:
    """The whole page."""
    group = typer.main.get_command(app)
    verbs: dict[str, Any] = group.commands  # type: ignore[attr-defined]
    parts = [HEAD, exit_codes()]
    parts += [verb(name, command) for name, command in verbs.items()]
    return "\n".join(parts)


def exit_codes() -> str:
    """The table of exit codes."""
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    return "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows, ""])


def verb(name: str, command: Any) -> str:
    """One verb's section: what it does, its examples, its options."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(
        ["bitqwen", name, *(argument.metavar or argument.name.upper() for argument in arguments)]
    )
    examples = [line.removeprefix("$ ") for line in command.epilog.split("\n\n") if line.startswith("$ ")]
    rows = [f"| `{argument.metavar}` | {cell(argument.help)} |" for argument in arguments]
    rows += [
        f"| {spelling(option)} | {cell(described(option))} |" for option in options if option.name != "help"
    ]
    return "\n".join(
        [
            f"## {usage}",
            "",
            command.help.strip(),
            "",
            "```console",
            *(f"$ {example}" for example in examples),
            "```",
            "",
            "| option | meaning |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def spelling(option: Any) -> str:
    """How an option is written, with what it takes."""
    names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
    if option.is_flag:
        return names
    choices = getattr(option.type, "choices", None)
    value = (
        " \\| ".join(map(str, choices)) if choices else option.metavar or option.type.name.split()[0].upper()
    )
    return f"{names} {value}"


def described(option: Any) -> str:
    """An option's help with its environment variable and default."""
    text = option.help.strip()
    if option.envvar:
        text += f" [env: {option.envvar}]"
    if (
        option.show_default
        and not option.is_flag
        and option.default is not None
        and not callable(option.default)
    ):
        text += f" [default: {option.default}]"
    return text


def cell(text: str) -> str:
    """Text that keeps a table row in one piece."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page differs")
    check = parser.parse_args().check
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not what the verbs say; run: python docs/generate_cli.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
