#!/usr/bin/env python3
"""Writes docs/cli.md from the verbs themselves: python docs/generate_cli.py [--check]."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, CommandInfo, ParameterInfo

from bitqwen.cli.app import app
from bitqwen.cli.options import EXIT_CODES

PAGE = Path(__file__).with_name("cli.md")

HEAD = """# Command line

<!-- Written by docs/generate_cli.py from src/bitqwen/cli/: change a verb there and run it again. -->

Results go to stdout, all else to stderr. An error is two lines, what is wrong and what to do next; `--debug`
adds the stack trace. `bitqwen --install-completion` sets up completion for your shell.
"""


class Parameter(NamedTuple):
    """One parameter of a verb's function: what Python knows of it, and what the command line does."""

    name: str
    kind: Any
    default: Any
    info: ParameterInfo


def page() -> str:
    """The whole page."""
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    codes = "\n".join(["## Exit codes", "", "| code | meaning |", "|---|---|", *rows, ""])
    sections = [section(command) for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        name = group.typer_instance.info.name
        sections += [section(command, f"{name} ") for command in group.typer_instance.registered_commands]
    return "\n".join([HEAD, codes, *sections])


def section(command: CommandInfo, group: str = "") -> str:
    """One verb: what it does, its examples, its arguments and options; ``group`` stands before its name."""
    function = command.callback
    assert function is not None
    found = list(parameters(function))
    arguments = [parameter for parameter in found if isinstance(parameter.info, ArgumentInfo)]
    options = [parameter for parameter in found if parameter not in arguments]
    usage = " ".join(
        [f"bitqwen {group}{function.__name__}", *(str(argument.info.metavar) for argument in arguments)]
    )
    examples = [line for line in (command.epilog or "").split("\n\n") if line.startswith("$ ")]
    rows = [f"| `{argument.info.metavar}` | {described(argument)} |" for argument in arguments]
    rows += [f"| {spelling(option)} | {described(option)} |" for option in options]
    parts = [f"## {usage}", inspect.getdoc(function) or "", "\n".join(["```console", *examples, "```"])]
    return "\n\n".join([*parts, "\n".join(["| option | meaning |", "|---|---|", *rows])]) + "\n"


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """A verb's parameters, from its function's annotations."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, info = get_args(hints[name])
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        yield Parameter(name, kind, default, info)


def spelling(option: Parameter) -> str:
    """How an option is written, with what it takes."""
    # In an annotation, typer holds the first spelling as the default.
    spellings = [option.info.default, *(option.info.param_decls or ())]
    names = ", ".join(f"`{name}`" for name in "/".join(spellings).split("/"))
    if bool in {option.kind, *get_args(option.kind)}:
        return names
    if get_origin(option.kind) is Literal:
        return f"{names} " + " \\| ".join(get_args(option.kind))
    return f"{names} {option.info.metavar}"


def described(parameter: Parameter) -> str:
    """A parameter's help with its environment variable and its default."""
    info = parameter.info
    text = " ".join((info.help or "").split())
    if info.envvar:
        text += f" Environment: `{info.envvar}`."
    if info.show_default and parameter.kind is not bool and parameter.default is not None:
        text += f" Default: {parameter.default}."
    return text.replace("|", "\\|")


def main() -> int:
    """Writes the page, or says whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page differs")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is not what the verbs say; run: python docs/generate_cli.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
