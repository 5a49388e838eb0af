"""``bitqwen kernels show``: which kernels a model's products get here, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from bitqwen.cli import options, terminal
from bitqwen.cli.kernels import source, tables


def show(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="As for tune; by default all that was tuned with as many threads.",
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            help="How a MODEL that is no GGUF file would be stored; by default w4.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Explain the kernels that a model's products get on this machine: bytes moved, time, and the best loser.

    A time stands beside what the machine did at most in the same run: bytes read a second where memory is
    the limit, and int8 multiply-adds a second for a prompt.
    """
    from bitqwen.errors import UsageError
    from bitqwen.kernels import plans

    if model is None and scheme is not None:
        raise UsageError("--scheme needs a MODEL.", hint="For example: bitqwen kernels show 7B --scheme w2")
    place = plans.here(threads)
    known = plans.load(place)
    if model is None:
        products, entries = None, list(known.values())
    else:
        products, _ = source.products_of(model, scheme)
        entries = [
            known[product.key, batch]
            for product in products
            for batch in plans.BATCHES
            if (product.key, batch) in known
        ]
    if json:
        terminal.print_json(tables.as_json(place, products, entries) | {"in_use": plans.enabled()})
        return
    if entries:
        tables.print_table(place, products, entries)
    missing = [] if products is None else [p for p in products if (p.key, "1") not in known]
    if missing or not entries:
        what = f"{len(missing)} products of {model} were not" if missing else "Nothing was"
        terminal.print_line(
            f"{what} tuned for {place.threads} threads on {place.isa}: the engine takes its defaults."
        )
        terminal.say(f"hint: bitqwen kernels tune {model or 'MODEL'}")
    if not plans.enabled():
        terminal.say("BITQWEN_TUNING=0: models do not use this.")
