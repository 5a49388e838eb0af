"""Importing bitqwen and asking for help stay light: what they load is counted, not timed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "transformers",
    "rich",
    "typer",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "jinja2",
    "numpy",
}
# rich and typer draw the help itself.
HEAVY_FOR_HELP = HEAVY - {"rich", "typer"}


def loaded_modules(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after a statement, as -X importtime tells them."""
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, check=True
    )
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines[1:]}


def test_import_loads_little() -> None:
    modules = loaded_modules("import bitqwen") - loaded_modules("pass")
    assert "bitqwen" in modules
    assert not HEAVY & modules
    assert len(modules) < 80, sorted(modules)


@pytest.mark.parametrize(
    "verb",
    ["", "pull", "convert", "run", "chat", "eval", "bench", "kernels", "doctor", "setup", "inspect", "demo"],
)
def test_help_loads_no_heavy_library(verb: str) -> None:
    arguments = [verb, "--help"] if verb else ["--help"]
    modules = loaded_modules(f"from bitqwen.cli.app import main; assert main({arguments!r}) == 0")
    assert "bitqwen.cli.app" in modules
    assert not HEAVY_FOR_HELP & modules
    assert "bitqwen._native" not in modules


def test_public_names_are_there_without_a_submodule_import() -> None:
    code = "import bitqwen; print(bitqwen.__version__, bitqwen.load, bitqwen.generate, bitqwen.stream)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("0.")
