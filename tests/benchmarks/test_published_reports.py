"""What the pages show of the saved reports is what the scripts make of them."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

from bitqwen.measure.bench import plots, tables

ROOT = Path(__file__).parents[2]
OVER_F16 = ROOT / "benchmarks/results/2026-11-25-over-f16.json"


def test_the_table_over_half_precision(script):
    lines = script("over_f16").table(tables.read(OVER_F16))
    page = (ROOT / "docs/benchmarking.md").read_text(encoding="utf-8")
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in page


def test_types_of_our_own_beside_their_peers(script):
    script("vs_peers")  # its folder holds the package that draws the table
    table = importlib.import_module("peers.table")
    shown = table.markdown(table.load(ROOT / "benchmarks/results/2026-11-30-peers.json"))
    assert shown.count("|\n") > 20
    assert shown.strip() in (ROOT / "docs/benchmarking.md").read_text(encoding="utf-8")


def test_rows_of_the_community_table(script):
    rows = script("community").rows(tables.read(OVER_F16))
    page = (ROOT / "docs/community-benchmarks.md").read_text(encoding="utf-8")
    assert len(rows) > 10
    assert "\n".join(rows) in page


def test_quality_beside_llama_cpp(script, capsys):
    path = ROOT / "benchmarks/results/2026-12-01-quality.json"
    script("quality").show(json.loads(path.read_text(encoding="utf-8")))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 15
    assert "\n".join(rows) in (ROOT / "docs/quality.md").read_text(encoding="utf-8")


def test_what_each_step_is_worth(script, capsys):
    path = ROOT / "benchmarks/results/2026-11-29-recipe-steps.json"
    script("recipe_steps").show(json.loads(path.read_text(encoding="utf-8"))["results"])
    assert capsys.readouterr().out.strip() in (ROOT / "docs/quantising.md").read_text(encoding="utf-8")


def test_files_on_humaneval(script, capsys):
    path = ROOT / "benchmarks/results/2026-12-01-humaneval.json"
    script("humaneval").show(json.loads(path.read_text(encoding="utf-8")))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert "\n".join(rows) in (ROOT / "docs/quality.md").read_text(encoding="utf-8")


def test_every_picture_is_shown():
    page = (ROOT / "docs/benchmarking.md").read_text(encoding="utf-8")
    for name in set(plots.PANELS) - {"quality"}:  # quality.md has its own
        assert f"](images/{name}.svg)" in page
        assert (ROOT / f"docs/images/{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_look_up_or_multiply_add(script):
    saved = json.loads((ROOT / "benchmarks/results/kernel_sweep.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
    assert "\n".join(script("kernel_sweep").table(saved["results"])) in page
    assert saved["machine"]["date"] in page
    assert "](images/kernel_sweep.svg)" in page
    assert (ROOT / "docs/images/kernel_sweep.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_what_rotations_were_measured_to_do():
    page = (ROOT / "docs/quantising.md").read_text(encoding="utf-8")
    path = ROOT / "benchmarks/results/2026-11-30-rotations.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    shares = (f"{kind.removesuffix('_proj')} {share:.2f}" for kind, share in results["kinds"].items())
    assert ", ".join(shares) in page
    before, turned = results["files"]["nothing"], results["files"]["everything"]
    for text in before:
        assert f"from {before[text]['kl']:.3f} to {turned[text]['kl']:.3f} in {text}" in page


def test_what_triples_were_estimated_to_give():
    path = ROOT / "benchmarks/results/2026-11-30-triples.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    page = (ROOT / "docs/quantising.md").read_text(encoding="utf-8")
    assert f"would lose {results['ratio']:.2f} times" in page
    for nbytes in ("511000000", "450000000"):
        size = results["sizes"][nbytes]
        expected = f"{size['with_triples']:.3f} instead of {size['loss']:.3f}"
        assert re.search(rf"{expected} (nats )?at {int(nbytes) // 10**6} MB", page)
