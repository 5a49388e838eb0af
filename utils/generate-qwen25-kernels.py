#!/usr/bin/env python3
"""Generates look-up-table kernels for a Qwen2.5 size: TL1 (ARM) and TL2 (x86), with their configuration."""

from __future__ import annotations

import argparse
import sys

from bitqwen.cli.app import main


def command(arguments: list[str] | None = None) -> list[str]:
    """The ``bitqwen`` command that does what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "model", nargs="?", help="0.5B 1.5B 3B 7B 14B 32B 72B, a .gguf file, folder or hub id"
    )
    parser.add_argument("--config", help="any model's config.json, instead of a size")
    parser.add_argument("--output", "-o", required=True, help="the folder to write to")
    parser.add_argument("--target", action="append", default=[], choices=["arm", "x86", "avx512"])
    parser.add_argument("--check", action="store_true", help="compile and prove what this CPU runs")
    given = parser.parse_args(arguments)
    options = [f"--output={given.output}", *(f"--target={target}" for target in given.target)]
    options += ["--check"] if given.check else []
    options += [f"--config={given.config}"] if given.config else []
    return ["kernels", "generate", *options, *(["--", given.model] if given.model else [])]


if __name__ == "__main__":
    sys.exit(main(command()))
