"""``bitqwen kernels tune``: the fastest kernels for a model's shapes on this machine."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from bitqwen.cli import options, terminal
from bitqwen.cli.kernels import source, tables


def tune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, or a size (0.5B 1.5B 3B 7B 14B 32B 72B), a checkpoint folder or a hub id.",
            show_default=False,
        ),
    ],
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
    budget: Annotated[
        float,
        typer.Option(
            "--seconds", min=0.0, help="Time to stay within, if one round of all fits.", metavar="S"
        ),
    ] = 45.0,
    compile: Annotated[
        bool,
        typer.Option(
            "--generated/--no-generated",
            help="Also compile kernels for exactly these shapes, where weights may be ternary.",
        ),
    ] = True,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Measure which kernels are fastest here for each of a model's matrix products, and keep the answer.

    For each shape and batch (one token, a few, a prompt) instruction sets, tiles and cuts of the work between
    threads take turns on random weights that no cache holds. Every model opened later with as many
    threads uses what was found; results stay the same to the last bit. Let nothing else run meanwhile.
    """
    from bitqwen.kernels import candidates, plans
    from bitqwen.kernels.tuner import tune as measure

    products, name = source.products_of(model, scheme)
    place = plans.here(threads)
    started = time.perf_counter()
    with terminal.status(f"Timing kernels for {name}", quiet=quiet or json) as status:

        def progress(product: object, batch: str, done: int, total: int) -> None:
            if status is not None:
                status.update(f"Timing kernels for {name}: {done} of {total}")

        generated = candidates.compiled(products) if compile else candidates.Candidates([], "")
        entries = measure(
            products,
            threads=place.threads,
            generated=generated.libraries,
            budget=budget,
            progress=progress,
        )
    path = plans.save(place, entries)
    seconds = time.perf_counter() - started
    if json:
        terminal.print_json(tables.as_json(place, products, entries) | {"file": path, "seconds": seconds})
        return
    if not quiet:
        tables.print_table(place, products, entries)
        terminal.say(f"{len(entries)} products in {seconds:.0f} s. Written: {path}")
        if generated.why_not:
            terminal.say(f"Without generated kernels: {generated.why_not}.")
