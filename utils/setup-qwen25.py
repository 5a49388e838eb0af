#!/usr/bin/env python3
"""Sets a Qwen2.5 model up: checks, fetches, makes kernels, converts, tunes, tries; resumes if stopped."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def commands(arguments: list[str] | None = None) -> list[list[str]]:
    """The ``bitqwen`` commands that do what the arguments ask for, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", "-m", required=True, help="hub id, checkpoint folder or .gguf file")
    parser.add_argument("--quant-type", "-q", default="tl1", help="tl1, tl2, or a scheme such as w4")
    parser.add_argument("--output", "-o", help="folder of the results; by default models/NAME")
    parser.add_argument("--threads", "-t", type=int, help="threads; by default one a core")
    given = parser.parse_args(arguments)
    options = [f"--quant-type={given.quant_type}"]
    options += [f"--output={given.output}"] if given.output else []
    options += [f"--threads={given.threads}"] if given.threads else []
    return [["doctor", "--offline"], ["setup", *options, "--", given.model]]


if __name__ == "__main__":
    sys.exit(next((code for command in commands() if (code := main(command))), 0))
