#!/usr/bin/env python3
"""Downloads a Qwen2.5 model, converts and quantises it, generates its kernels, and checks that it answers."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def command(arguments: list[str] | None = None) -> list[str]:
    """The ``bitqwen`` command that does what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="hub id, checkpoint folder or .gguf file")
    parser.add_argument("--quant-type", "-q", default="tl1", help="tl1, tl2, or a scheme such as w4")
    parser.add_argument("--output", "-o", help="folder of the results; by default models/NAME")
    given = parser.parse_args(arguments)
    options = [f"--quant-type={given.quant_type}"] + ([f"--output={given.output}"] if given.output else [])
    return ["setup", *options, "--", given.model]


if __name__ == "__main__":
    sys.exit(main(command()))
