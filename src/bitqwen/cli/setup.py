"""``bitqwen setup``: from a model's name to a file that answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitqwen.cli import options, terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.setup import Needs


def setup(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id, a checkpoint folder, a .gguf file or package:NAME.",
            show_default=False,
        ),
    ],
    scheme: Annotated[
        str | None,
        typer.Option(
            "--scheme",
            "--quant-type",
            help="A scheme of `bitqwen convert --list-schemes`, or tl1 or tl2: the ternary layout with a "
            "hint in the file. By default w4.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            help="Take the widest scheme that runs in this much memory: 2GB.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="The folder for all results; by default models/NAME.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    token: options.Token = None,
    offline: options.Offline = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Fetch a model, generate kernels for its shapes, convert it, tune this machine for it and try it.

    It says first what it will fetch and need. Stopped and run again, it goes on where it was: a step is
    done when the hashes of what went in and of what came out are those noted in the folder. A tl1 or tl2
    file is the ternary layout with a hint in its metadata: it runs on every CPU.
    """
    from bitqwen import setup as pipeline

    if scheme is not None and fit is not None:
        raise UsageError("--fit chooses the scheme itself; leave --scheme out.")
    if fit is not None:
        scheme = _fitting(model, fit, revision=revision, token=token, offline=offline)
    shown = not (quiet or json)
    terminal.hub_progress(shown=shown)
    steps = pipeline.run(
        model,
        pipeline.quant_type(scheme or "w4"),
        folder=output,
        threads=threads,
        revision=revision,
        token=token,
        offline=offline,
        announce=_announce if shown else None,
        begin=(lambda name: terminal.say(f"step: {name}")) if shown else None,
    )
    if json:
        terminal.print_json({"steps": [step._asdict() for step in steps]})
        return
    for step in steps:
        terminal.print_line(f"{step.name}{' (done before)' if step.skipped else ''}: {step.result}")


def _announce(required: Needs, output: Path) -> None:
    size = terminal.size
    if required.fetch:
        terminal.say(f"May fetch about {size(required.fetch)} from the hub; what is there is kept.")
    terminal.say(f"Writes {output}: {size(required.disk)} of {size(required.free_disk)} free.")
    terminal.say(
        f"Running it takes {size(required.memory)} of memory; {size(required.free_memory)} are available."
    )


def _fitting(model: str, fit: str, *, revision: str | None, token: str | None, offline: bool) -> str:
    from bitqwen.checkpoints.configs import read_config
    from bitqwen.cli.fits import fits, size_in_bytes
    from bitqwen.models.registry import config_from_hf

    config = config_from_hf(read_config(model, revision=revision, token=token, offline=offline), source=model)
    rows = fits(config, size_in_bytes(fit))
    best = max(
        (row for row in rows if row.fits and not row.needs_training), key=lambda r: r.memory, default=None
    )
    if best is None:
        least = min(rows, key=lambda row: row.memory)
        raise UsageError(
            f"--fit {fit}: no scheme fits; {least.scheme} needs {terminal.size(least.memory)}.",
            hint="Take a smaller model: bitqwen inspect --fit " + fit + " lists them.",
        )
    return best.scheme
