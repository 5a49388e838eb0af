"""``bitqwen doctor``: what this machine offers, what is wrong with it, and the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bitqwen.cli import options, terminal

if TYPE_CHECKING:
    from bitqwen.measure.health import Check

_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "broken": "[red]broken[/]"}


def doctor(
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Compare the kernels of every instruction set with the scalar ones."
        ),
    ] = False,
    offline: options.Offline = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Look at this machine: CPU, memory and its speed, kernels, compiler, disk, hub, energy counters.

    Each line is ok, a warning or broken, with what to do about it. Put its output into a report of a fault.
    The exit code is 1 if something is broken.
    """
    from bitqwen.measure import health

    found = []
    for check in health.checks(network=not offline, self_test=self_test):
        found.append(check)
        if not json:
            _print(check)
    if json:
        terminal.print_json({"checks": [check.as_json() for check in found]})
    if any(check.status == "broken" for check in found):
        raise typer.Exit(1)


def _print(check: Check) -> None:
    from rich.markup import escape

    out = terminal.stdout()
    padding = " " * (8 - len(check.status))
    out.print(f"{_MARKS[check.status]}{padding}{escape(f'{check.name}: {check.found}')}", soft_wrap=True)
    if check.cure:
        out.print(f"        {escape(check.cure)}", soft_wrap=True)
