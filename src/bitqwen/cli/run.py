"""``bitqwen run``: one prompt, one answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitqwen.cli import options, prompts, terminal

if TYPE_CHECKING:
    from bitqwen.generation.results import Timings
    from bitqwen.generation.text_stream import TextStream


def run(
    model: options.Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt.", metavar="TEXT", show_default=False)
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="Read the prompt from a file; - is stdin.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without the chat template.")
    ] = False,
    system: options.System = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv: options.KvType = "f16",
    no_tuning: options.NoTuning = False,
    exact_head: options.ExactHead = False,
    numa: options.Numa = False,
    max_tokens: options.MaxTokens = options.DEFAULT_MAX_TOKENS,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Answer one prompt: from -p, from a file, or from a pipe.

    The answer streams to stdout; how fast it came goes to stderr.
    """
    if raw and system is not None:
        raise typer.BadParameter("--raw takes the prompt as it stands; leave --system out.")
    text = prompts.read(prompt, file)
    language_model = options.load(
        model, threads=threads, context=context, kv=kv, exact_head=exact_head, numa=numa, quiet=quiet or json
    )
    stream = language_model.stream(
        text if raw else _messages(system, text),
        max_tokens=options.max_tokens(max_tokens),
        **options.given(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
        ),
    )
    with stream:
        if json:
            terminal.print_json(_as_json(stream))
            return
        for piece in stream:
            terminal.write(piece)
        terminal.write("\n")
    terminal.say(summary(stream.timings), quiet=quiet)


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": text}]


def _as_json(stream: TextStream) -> dict[str, Any]:
    generation = stream.result()
    timings = generation.timings
    return {
        "text": generation.text,
        "tokens": generation.tokens,
        "finish_reason": generation.finish_reason,
        "stopped_by": generation.stopped_by,
        "seed": generation.seed,
        "timings": {
            "load_seconds": timings.load_seconds,
            "prompt_tokens": timings.prompt_tokens,
            "prefill_seconds": timings.prefill_seconds,
            "prefill_tokens_per_second": timings.prefill_tokens_per_second,
            "generated_tokens": timings.generated_tokens,
            "decode_seconds": timings.decode_seconds,
            "decode_tokens_per_second": timings.decode_tokens_per_second,
        },
    }


def summary(timings: Timings) -> str:
    """One line on how long a generation took."""
    return (
        f"[load {timings.load_seconds:.2f} s; prompt {timings.prompt_tokens} tokens, "
        f"{timings.prefill_tokens_per_second:.1f} tokens/s; answer {timings.generated_tokens} tokens, "
        f"{timings.decode_tokens_per_second:.1f} tokens/s]"
    )
