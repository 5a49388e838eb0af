#!/usr/bin/env python3
"""Checks the conversion of Qwen2.5 models with the project's own tests, and ends with PASS or FAIL."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = {
    "kernel generation": ["tests/kernels"],
    "conversion": ["tests/convert/test_convert.py", "tests/convert/test_plan.py"],
    "tensor mapping": ["tests/models/test_qwen2.py"],
    "quantisation": ["tests/quant/test_schemes.py", "tests/convert/test_ternary.py"],
}


def main() -> int:
    """Runs each group of tests; further arguments go to pytest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", choices=list(CHECKS), action="append", help="run this group; may be repeated"
    )
    given, rest = parser.parse_known_args()
    missing = [name for name in ("pytest", "hypothesis", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"{', '.join(missing)} missing. pip install -r requirements-qwen25.txt", file=sys.stderr)
        return 2
    failed = []
    for name in given.only or CHECKS:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not real", *CHECKS[name], *rest]
        if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    print(f"FAIL: {', '.join(failed)}" if failed else "PASS: every check")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
