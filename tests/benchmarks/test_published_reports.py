"""What the pages show of the saved reports is what the scripts make of them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from bitqwen.measure.bench import plots, tables

ROOT = Path(__file__).parents[2]
OVER_F16 = ROOT / "benchmarks/results/2026-11-25-over-f16.json"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    names = []

    def load(name):
        names.append(name)
        return importlib.import_module(name)

    yield load
    for name in names:
        sys.modules.pop(name, None)


def test_the_table_over_half_precision(script):
    lines = script("over_f16").table(tables.read(OVER_F16))
    page = (ROOT / "docs/benchmarking.md").read_text(encoding="utf-8")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in page


def test_rows_of_the_community_table(script):
    rows = script("community").rows(tables.read(OVER_F16))
    page = (ROOT / "docs/community-benchmarks.md").read_text(encoding="utf-8")
    assert len(rows) > 10
    assert "\n".join(rows) in page


def test_every_picture_is_shown():
    page = (ROOT / "docs/benchmarking.md").read_text(encoding="utf-8")
    for name in set(plots.PANELS) - {"quality"}:  # quality.md has its own
        assert f"](images/{name}.svg)" in page
        assert (ROOT / f"docs/images/{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
