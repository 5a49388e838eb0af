"""``bitqwen inspect``: what a model is, and what it will need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitqwen.cli import options, receipts, terminal
from bitqwen.errors import UsageError

if TYPE_CHECKING:
    from bitqwen.cli.inspection import Inspection
    from bitqwen.engine.cache import KvType


def inspect(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL]",
            help="A .gguf file, a checkpoint folder, or a hub id, of which only config.json is fetched.",
            show_default=False,
        ),
    ] = None,
    context: options.Context = None,
    kv: options.KvType = "f16",
    threads: options.Threads = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            help="List the schemes that run in this much memory (8GB): of MODEL, or of every published size.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    token: options.Token = None,
    offline: options.Offline = False,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is and what it will need, without reading its weights.

    Bits per weight are the bytes that the file spends on its tensors, scales included, over the number of
    weights.
    """
    if model is None and fit is None:
        raise UsageError("MODEL is missing.", hint="For example: bitqwen inspect qwen.gguf")
    found = None if model is None else _found(model, revision=revision, token=token, offline=offline)
    if fit is not None:
        _print_fits(found, fit, context, kv, as_json=json)
        return
    assert found is not None
    need = found.memory(context, kv, threads)
    if json:
        terminal.print_json(_as_json(found, need, kv, with_tensors=tensors))
    else:
        _print(found, need, kv, with_tensors=tensors)


def _found(model: str, *, revision: str | None, token: str | None, offline: bool) -> Inspection:
    from bitqwen.checkpoints.sources import is_hub_id
    from bitqwen.cli.inspection import inspect_hub, inspect_path

    if is_hub_id(model):
        return inspect_hub(model, revision=revision, token=token, offline=offline)
    path = Path(model).expanduser()
    if not path.exists():
        raise UsageError(
            f"There is no file or folder {model}.",
            hint="Give a .gguf file, a checkpoint folder, or a hub id such as Qwen/Qwen2.5-7B-Instruct.",
        )
    return inspect_path(path)


def _print_fits(
    found: Inspection | None, fit: str, context: int | None, kv: KvType, *, as_json: bool
) -> None:
    """Schemes of a model, or of every published size, and which of them run in that memory."""
    from rich.table import Table

    from bitqwen import quant
    from bitqwen.cli.fits import fits, size_in_bytes
    from bitqwen.kernels import SIZES, preset
    from bitqwen.measure import published

    limit = size_in_bytes(fit)
    if found is not None and found.config is None:
        raise UsageError(f"{found.name} is not supported: {found.unsupported}")
    models = {f"Qwen2.5-{size.upper()}": preset(size) for size in SIZES}
    if found is not None and found.config is not None:
        models = {found.name: found.config}
    rows = [
        (name, row) for name, config in models.items() for row in fits(config, limit, context=context, kv=kv)
    ]
    known = published.load()
    here = {name for name, config in models.items() if known.is_of(config)}
    if as_json:
        as_rows = [
            {"model": name, **row._asdict(), "measured": known.as_json(row.scheme) if name in here else None}
            for name, row in rows
        ]
        terminal.print_json({"limit": limit, "fits": as_rows, "measured_on": known.model})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "scheme", "file", "memory", "fits", "measured quality", "when to use it"):
        table.add_column(heading, justify="right" if heading in {"file", "memory"} else "left")
    for name, row in rows:
        if row.fits or found is not None:
            answer = "yes" if row.fits else "no"
            sizes = terminal.size(row.file), terminal.size(row.memory)
            quality = known.in_words(row.scheme) if name in here else "not measured at this size"
            table.add_row(name, row.scheme, *sizes, answer, quality, quant.get(row.scheme).when)
    terminal.stdout().print(table)
    terminal.say(
        "Memory is weights, KV cache and scratch, computed from the shapes. Quality was measured on "
        f"{known.model} ({known.dates}; {known.settings}): KL divergence from the source in nats a token, "
        "prose / code, without calibration. Other sizes lose other amounts: bitqwen eval measures yours, and "
        "a file that was converted with --receipt carries its own."
    )


def _as_json(
    found: Inspection, need: dict[str, int] | None, kv: KvType, *, with_tensors: bool
) -> dict[str, Any]:
    total = found.total
    out = {
        "path": found.path,
        "kind": found.kind,
        "name": found.name,
        "architecture": found.architecture,
        "supported": found.config is not None,
        "unsupported": found.unsupported or None,
        "hyperparameters": found.hyperparameters(),
        "file_bytes": found.file_bytes,
        "tensors": total.tensors,
        "weights": total.weights,
        "tensor_bytes": total.nbytes,
        "bits_per_weight": total.bits_per_weight,
        "types": [{**row._asdict(), "bits_per_weight": row.bits_per_weight} for row in found.by_type()],
        "memory": None if need is None else {**need, "kv": kv},
        "receipt": receipts.as_json(found.receipt),
        "metadata": found.metadata,
    }
    if with_tensors:
        out["tensor_list"] = [tensor._asdict() for tensor in found.tensors]
    return out


def _print(found: Inspection, need: dict[str, int] | None, kv: KvType, *, with_tensors: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    from bitqwen.cli.inspection import memory_text

    out = terminal.stdout()
    total = found.total
    out.print(f"[bold]{escape(found.name)}[/]  {escape(str(found.path))}")
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_row("architecture", escape(found.architecture))
    if found.unsupported:
        facts.add_row("not supported", escape(found.unsupported))
    for name, value in found.hyperparameters().items():
        facts.add_row(name.replace("_", " "), escape(_text(value)))
    for key in ("bitqwen.scheme", "bitqwen.source"):
        if key in found.metadata:
            facts.add_row(key.removeprefix("bitqwen."), escape(str(found.metadata[key])))
    facts.add_row("file", f"{terminal.size(found.file_bytes)} ({found.file_bytes:,} bytes)")
    facts.add_row("weights", f"{total.weights:,} in {total.tensors} tensors")
    facts.add_row("bits per weight", f"{total.bits_per_weight:.3f}")
    rotated = sum(tensor.rotated for tensor in found.tensors)
    if rotated:
        facts.add_row("rotated", f"{rotated} matrices, their columns mixed by a Hadamard matrix")
    out.print(facts)

    types = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("type", "tensors", "weights", "bytes", "bits per weight"):
        types.add_column(heading, justify="left" if heading == "type" else "right")
    for row in found.by_type():
        types.add_row(
            row.type, str(row.tensors), f"{row.weights:,}", f"{row.nbytes:,}", f"{row.bits_per_weight:.3f}"
        )
    out.print()
    out.print(types)
    if need is not None:
        out.print()
        out.print(memory_text(need, kv))
    if found.receipt is not None:
        out.print()
        receipts.print_receipt(found.receipt)
    if with_tensors:
        out.print()
        out.print(_tensor_table(found))


def _tensor_table(found: Inspection) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("tensor", "type", "shape", "bytes"):
        table.add_column(heading, justify="right" if heading in {"shape", "bytes"} else "left", no_wrap=True)
    for tensor in found.tensors:
        kind = f"{tensor.type}, rotated" if tensor.rotated else tensor.type
        table.add_row(tensor.name, kind, " x ".join(map(str, tensor.shape)), f"{tensor.nbytes:,}")
    return table


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {item}" for name, item in value.items())
    return "none" if value is None else str(value)
