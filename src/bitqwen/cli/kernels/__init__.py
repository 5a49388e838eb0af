"""``bitqwen kernels``: kernels for one model's shapes on one machine, a module for each verb."""

from __future__ import annotations

import typer

from bitqwen.cli import options
from bitqwen.cli.kernels.generate import generate
from bitqwen.cli.kernels.show import show
from bitqwen.cli.kernels.tune import tune

app = typer.Typer(
    name="kernels",
    help="Choose kernels for one model's shapes on this machine, explain the choice, or generate new ones.",
    epilog=options.epilog("bitqwen kernels tune qwen.gguf", "bitqwen kernels show qwen.gguf"),
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(
    epilog=options.epilog(
        "bitqwen kernels generate 7B -o preset_kernels/qwen25-7b",
        "bitqwen kernels generate qwen.gguf --target x86 -o kernels --check",
        "bitqwen kernels generate --config config.json --target arm --bm 64 --bk 256 -o kernels",
    )
)(generate)
app.command(
    epilog=options.epilog("bitqwen kernels tune qwen.gguf", "bitqwen kernels tune 7B --scheme w2 --threads 4")
)(tune)
app.command(
    epilog=options.epilog("bitqwen kernels show qwen.gguf", "bitqwen kernels show 7B --scheme w2 --json")
)(show)
