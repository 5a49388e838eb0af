#!/usr/bin/env python3
"""Runs a GGUF model, with the options of bitnet.cpp's script of this name."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def command(arguments: list[str] | None = None) -> list[str]:
    """The ``bitqwen`` command that does what the arguments ask for."""
    parser = argparse.ArgumentParser(description="Run a GGUF model on the CPU.", allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True, help="path of the .gguf file")
    parser.add_argument("-p", "--prompt", required=True, help="the prompt; with -cnv the system prompt")
    parser.add_argument(
        "-n", "--n-predict", type=int, default=128, help="tokens to generate at most; -1: no limit"
    )
    parser.add_argument("-t", "--threads", type=int, help="threads; by default one a core")
    parser.add_argument("-c", "--ctx-size", type=int, default=2048, help="tokens of context")
    parser.add_argument("-temp", "--temperature", type=float, default=0.8, help="0 takes the likeliest token")
    parser.add_argument("-cnv", "--conversation", action="store_true", help="chat in the terminal")
    given = parser.parse_args(arguments)
    options = [
        f"--max-tokens={max(given.n_predict, 0)}",
        f"--context={given.ctx_size}",
        f"--temp={given.temperature}",
    ]
    if given.threads is not None:
        options.append(f"--threads={given.threads}")
    if given.conversation:
        return ["chat", given.model, f"--system={given.prompt}", *options]
    return ["run", given.model, "--raw", f"--prompt={given.prompt}", *options]


if __name__ == "__main__":
    sys.exit(main(command()))
