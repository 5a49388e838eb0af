#!/usr/bin/env python3
"""The whole way, step by step, on a model small enough for any machine: shapes, kernels, file, answer, speed.

Without --model it builds a random model of a few hundred kilobytes, whose words mean nothing; with one (a hub
id, a checkpoint folder, package:qwen2.5-coder-1.5b) the same steps give a model to talk to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bitqwen.cli.app import main as bitqwen

ROOT = Path(__file__).resolve().parents[1]


def random_model(folder: Path) -> str:
    """A checkpoint with random weights, as the tests use it."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.tiny_checkpoint import TinyModel, build

    return str(build(folder / "tiny-qwen2", TinyModel()).folder)


def step(title: str, why: str, *command: str) -> None:
    """Explains a step, shows its command and runs it; ends the program if it fails."""
    print(f"\n== {title}\n{why}\n$ bitqwen {' '.join(command)}", flush=True)
    code = bitqwen(command)
    if code:
        sys.exit(code)


def main() -> None:
    """All steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="what to use instead of the random model")
    parser.add_argument("--scheme", default="w4", help="how to store it; see bitqwen convert --list-schemes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = given.model or random_model(folder)
        file = str(folder / "model.gguf")
        step("The machine", "What this CPU offers, and what is missing.", "doctor", "--offline")
        step(
            "The kernels",
            "Source for exactly this model's shapes; the engine's own kernels do not need it.",
            *("kernels", "generate", model, "--output", str(folder / "kernels")),
        )
        step(
            "The file",
            f"One tensor at a time, into scheme {given.scheme}: a GGUF file that runs on every CPU.",
            *("convert", model, "--output", file, "--scheme", given.scheme),
        )
        step("What it is", "Shapes, types and the memory it takes.", "inspect", file)
        step("An answer", "Sixteen tokens, the likeliest each time.", "run", file, "-p", "Hello!", "-n", "16")
        step(
            "Its speed",
            "Prefill and decode, beside what this machine's memory can do.",
            *("bench", file, "-p", "32", "-n", "8", "-r", "2"),
        )
    print("\nGo on with a real model: --model package:qwen2.5-coder-1.5b, or a hub id.")


if __name__ == "__main__":
    main()
