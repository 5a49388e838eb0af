#!/usr/bin/env python3
"""Converts a Qwen2.5 checkpoint (a folder or a hub id) to a GGUF file, at two bits per weight by default."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def command(arguments: list[str] | None = None) -> list[str]:
    """The ``bitqwen`` command that does what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="checkpoint folder, hub id or .gguf file")
    parser.add_argument("--output", "-o", required=True, help="the .gguf file to write")
    parser.add_argument("--scheme", default="w2", help="as `bitqwen convert --list-schemes` names them")
    parser.add_argument(
        "--force", action="store_true", help="use a scheme that the model was not trained for"
    )
    parser.add_argument(
        "--debug", action="store_true", help="log each tensor: name, shape, type, error, time"
    )
    given = parser.parse_args(arguments)
    flags = [f"--{name}" for name in ("force", "debug") if getattr(given, name)]
    return ["convert", *flags, f"--scheme={given.scheme}", f"--output={given.output}", "--", given.model]


if __name__ == "__main__":
    sys.exit(main(command()))
