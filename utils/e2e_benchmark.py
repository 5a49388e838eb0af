#!/usr/bin/env python3
"""Measures prefill and decode of a GGUF model, with the options of bitnet.cpp's script of this name."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def command(arguments: list[str] | None = None) -> list[str]:
    """The ``bitqwen`` command that does what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("-m", "--model", required=True, help="path of the .gguf file")
    parser.add_argument("-p", "--n-prompt", type=int, default=512, help="tokens of prefill")
    parser.add_argument("-n", "--n-token", type=int, default=128, help="tokens to decode")
    parser.add_argument("-t", "--threads", type=int, help="threads; by default one a core")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="rounds, at least 2")
    parser.add_argument("--against", action="append", default=[], help="a peer, as in `bitqwen bench --help`")
    given = parser.parse_args(arguments)
    options = [
        f"--n-prompt={given.n_prompt}",
        f"--n-gen={given.n_token}",
        f"--repetitions={given.repetitions}",
    ]
    if given.threads is not None:
        options.append(f"--threads={given.threads}")
    return ["bench", *options, *(f"--against={peer}" for peer in given.against), "--", given.model]


if __name__ == "__main__":
    sys.exit(main(command()))
