"""``bitqwen kernels generate``: source code of kernels for exactly one model's shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitqwen.cli import options, terminal
from bitqwen.cli.kernels import source
from bitqwen.errors import BitqwenError, UsageError

if TYPE_CHECKING:
    from bitqwen.kernels import Generated


def _tile(flag: str, text: str) -> Any:
    return typer.Option(
        flag, min=1, help=text, metavar="N", show_default=False, rich_help_panel="Tiles, for all shapes"
    )


def generate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A size (0.5B 1.5B 3B 7B 14B 32B 72B), a GGUF file, a checkpoint folder or a hub id.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", help="A config.json, instead of MODEL.", metavar="FILE", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="arm (TL1), x86 (TL2 for AVX2) or avx512 (TL2); may be given again. By default all.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder to write to.", metavar="DIR", show_default=False),
    ] = None,
    rows: Annotated[int | None, _tile("--bm", "BM: rows of a tile.")] = None,
    cols: Annotated[int | None, _tile("--bk", "BK: columns of a block of tables.")] = None,
    lanes: Annotated[int | None, _tile("--bmm", "bm: rows of one look-up vector.")] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Also compile what this CPU runs, and compare with plain integer products."
        ),
    ] = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write C++ source of look-up-table kernels for exactly a model's matrix shapes.

    TL1 looks up pairs of ternary weights, TL2 triples with pairs at the end of a row, as bitnet.cpp's do;
    tile sizes are BM, BK and bm in its terms, and sizes that a shape does not allow are refused. The files
    are a header with a small C interface and a kernel_config file. bitqwen does not need them: `tune`
    makes its own.
    """
    from bitqwen.kernels import TARGETS, generate
    from bitqwen.kernels.targets import target_named

    if output is None:
        raise UsageError(
            "--output DIR is missing.",
            hint="For example: bitqwen kernels generate 7B -o preset_kernels/qwen25-7b",
        )
    shapes, name = source.config_of(model, config)
    chosen = [target_named(name) for name in dict.fromkeys(target or TARGETS)]
    tiles = {"rows": rows, "cols": cols, "lanes": lanes}
    command = _command(name, config, [each.name for each in chosen], tiles)
    made = [generate(shapes, each, model=name, command=command, **tiles) for each in chosen]
    paths = [path for each in made for path in each.write(output)]
    checks = {each.target.name: _check(each) for each in made} if check else {}
    if json:
        terminal.print_json({"files": paths, "kernels": [_as_json(each) for each in made], "checks": checks})
    elif quiet:
        terminal.print_line("\n".join(map(str, paths)))
    else:
        _print(made, paths, checks)
    failed = [name for name, result in checks.items() if result == "wrong"]
    if failed:
        raise BitqwenError(
            f"Kernels for {', '.join(failed)} computed wrong integers on this machine.",
            hint="Report it with the output of: bitqwen doctor",
        )


def _command(name: str, config: Path | None, targets: list[str], tiles: dict[str, int | None]) -> str:
    """How to write the same file again, wherever it is to lie."""
    from bitqwen.kernels import TARGETS

    source = f"--config {name}" if config is not None else name.removeprefix("Qwen2.5-")
    parts = ["bitqwen kernels generate", source]
    if targets != list(TARGETS):
        parts += [f"--target {target}" for target in targets]
    flags = {"rows": "--bm", "cols": "--bk", "lanes": "--bmm"}
    parts += [f"{flags[key]} {value}" for key, value in tiles.items() if value is not None]
    return " ".join([*parts, "--output DIR"])


def _check(made: Generated) -> str:
    """``exact``, ``wrong``, or why the kernels cannot run here."""
    from bitqwen.kernels import compiler
    from bitqwen.kernels.library import Library
    from bitqwen.kernels.targets import runs_here

    if not runs_here(made.target):
        return f"not run: this CPU has no {made.target.needs}"
    with terminal.status(f"Compiling {made.target.description}"):
        library = Library(compiler.shared_library(made.header, made.target.flags))
    return "wrong" if library.wrong() else "exact"


def _as_json(made: Generated) -> dict[str, Any]:
    return {
        "target": made.target.name,
        "family": made.target.family,
        "kernels": [
            {
                "m": shape.rows,
                "k": shape.cols,
                "bm": tile.rows,
                "bk": tile.cols,
                "bmm": tile.lanes,
                "matrices": shape.names,
            }
            for shape, tile in made.kernels
        ],
    }


def _print(made: list[Generated], paths: list[Path], checks: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("target", "m", "k", "bm", "bk", "bmm", "matrices"):
        table.add_column(heading, justify="left" if heading in {"target", "matrices"} else "right")
    for each in made:
        for shape, tile in each.kernels:
            numbers = map(str, (shape.rows, shape.cols, tile.rows, tile.cols, tile.lanes))
            table.add_row(each.target.name, *numbers, ", ".join(shape.names))
    terminal.stdout().print(table)
    for name, result in checks.items():
        terminal.print_line(f"check, {name}: {result}")
    terminal.say("Written: " + ", ".join(map(str, paths)))
