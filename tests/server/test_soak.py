"""The soak benchmark in small: a server that was asked 300 things, memory and all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


def test_three_hundred_mixed_requests_leave_the_server_as_it_was(tiny_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("psutil")
    saved = tmp_path / "soak.json"
    command = [sys.executable, str(SCRIPT), str(tiny_gguf), "--requests", "300", "--warm-up", "100"]
    # Few requests, so that what the allocator keeps counts for more than in a long run.
    command += ["--cache-positions", "2048", "--growth", "8", "--save", str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads(saved.read_text())["results"]
    assert results["wrong"] == {}
    assert results["rows"][-1][1] >= 300
