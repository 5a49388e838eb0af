"""Options that several verbs share, and the text below each verb's help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitqwen.cli import terminal

if TYPE_CHECKING:
    from bitqwen.generation.language_model import LanguageModel


# The library's own default, spelt again: importing it would make every --help load numpy.
DEFAULT_MAX_TOKENS = 1024

MODEL = "Model"
SAMPLING = "Sampling"
OUTPUT = "Output"

# The classes of errors.py, as a user meets them.
EXIT_CODES = {
    0: "done",
    1: "a fault of bitqwen",
    2: "wrong usage",
    3: "unreadable or unwritable file",
    4: "unsupported model",
    5: "wrong checkpoint",
    6: "too little memory or disk space",
    7: "download failed",
    8: "prompt longer than the context",
    130: "stopped with Ctrl-C",
}


def epilog(*examples: str) -> str:
    """What stands below a verb's options: its examples and the exit codes.

    Typer joins the lines of a paragraph, so each example is one.
    """
    title = "Example:" if len(examples) == 1 else "Examples:"
    codes = ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())
    return "\n\n".join([title, *(f"$ {example}" for example in examples), f"Exit codes: {codes}."])


class _Debug:
    """Whether to show stack traces; read by the handler that outlives the command line's own context."""

    enabled = False


def debug_enabled() -> bool:
    """Whether the user asked for stack traces."""
    return _Debug.enabled or os.environ.get("BITQWEN_DEBUG", "") not in {"", "0"}


def _set_debug(value: bool) -> bool:
    _Debug.enabled = _Debug.enabled or value
    return value


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        help="Show the stack trace of an error, and what becomes of each tensor (also: BITQWEN_DEBUG=1).",
        callback=_set_debug,
        is_eager=True,
        expose_value=False,
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print the result and nothing else.", rich_help_panel=OUTPUT)
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one line of JSON.", rich_help_panel=OUTPUT)
]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A hub id such as Qwen/Qwen2.5-0.5B-Instruct, or package:NAME.",
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option("--revision", help="Branch, tag or commit on the hub.", metavar="REV", show_default=False),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", envvar="HF_TOKEN", help="Access token for the hub.", metavar="TOKEN", show_default=False
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use only what was downloaded before (also: HF_HUB_OFFLINE=1).")
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .gguf file, or else a checkpoint folder or hub id, which is converted to w4 first.",
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        metavar="N",
        help="Threads; by default one a core.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        min=1,
        metavar="N",
        help="Tokens of context to make room for; by default 4096, or the model's own if that is less.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
KvType = Annotated[
    Literal["f16", "q8", "q4", "int8"],
    typer.Option(
        "--kv", help="Number format of the KV cache; int8 is an older name of q8.", rich_help_panel=MODEL
    ),
]


def _without_tuning(value: bool) -> None:
    if value:
        os.environ["BITQWEN_TUNING"] = "0"


NoTuning = Annotated[
    bool,
    typer.Option(
        "--no-tuning",
        help="Use no kernels that `bitqwen kernels tune` found (also: BITQWEN_TUNING=0).",
        callback=_without_tuning,
        expose_value=False,
        rich_help_panel=MODEL,
    ),
]
ExactHead = Annotated[
    bool,
    typer.Option(
        "--exact-head",
        help="Compute every logit of every token, not only those that can be chosen.",
        rich_help_panel=MODEL,
    ),
]
Numa = Annotated[
    bool,
    typer.Option(
        "--numa",
        help="Keep threads and the weights that they read together on the memory nodes of a machine that has "
        "several.",
        rich_help_panel=MODEL,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system", "-s", metavar="TEXT", help="System prompt.", show_default=False, rich_help_panel=MODEL
    ),
]

MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        "-n",
        min=0,
        metavar="N",
        help="Stop after this many tokens; 0 goes on to the model's own end, or the context's.",
        rich_help_panel=SAMPLING,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temp",
        "--temperature",
        min=0.0,
        metavar="T",
        help="0 takes the likeliest token each time; by default what the model's makers recommend.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        metavar="K",
        help="Keep the K likeliest tokens; 0 keeps all.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        metavar="P",
        help="Keep the likeliest tokens that together have this probability.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        metavar="P",
        help="Keep tokens at least this likely, relative to the likeliest.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        min=0.01,
        metavar="R",
        help="Above 1: make tokens that occurred less likely.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        metavar="N",
        help="Same seed, same text; by default a new one each time.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="TEXT",
        help="End the text before this string; may be given again.",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]

OutputFile = Annotated[
    Path, typer.Option("--output", "-o", help="The file to write.", metavar="FILE", show_default=False)
]


def given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; the library's own defaults stand for the others."""
    return {name: value for name, value in options.items() if value is not None}


def max_tokens(option: int) -> int | None:
    """What ``--max-tokens`` means to the library."""
    return option or None


def load(
    source: str,
    *,
    threads: int | None,
    context: int | None,
    kv: Literal["f16", "q8", "q4", "int8"],
    exact_head: bool = False,
    numa: bool = False,
    quiet: bool = False,
) -> LanguageModel:
    """Opens a model, with a spinner on stderr."""
    import bitqwen

    with terminal.status(f"Loading {source}", quiet=quiet):
        model = bitqwen.load(
            source, kv=kv, exact_head=exact_head or None, numa=numa, **given(threads=threads, context=context)
        )
    if model.model.placement:
        terminal.say(model.model.placement, quiet=quiet)
    return model
