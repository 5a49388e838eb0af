from __future__ import annotations

import importlib
import json
import shlex
import stat
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# What kernels_benchmark printed on a Zen 4 machine.
RECORDED = """\
kernels: avx512vbmi, the best of what this build has and this CPU runs (scalar, avx2); 2 threads; K = 1536
type    columns |      GB/s        of       % |    GMAC/s        of       %
TQ2_0         1 |     25.20     24.00  105.0% |      97.7     310.0   31.5%
V2_5          1 |     20.00     25.00   80.0% |      61.0     310.0   19.7%
"""


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("kernels", "machine")
    before = {name: sys.modules.pop(name, None) for name in names}
    yield importlib.import_module("kernels")
    for name in names:
        sys.modules.pop(name, None)
        if before[name] is not None:
            sys.modules[name] = before[name]


def program(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "kernels_benchmark"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_rows_are_read_and_shared_by_what_bounds_them(kernels):
    rows = kernels.parse(RECORDED, "memory", 1536, 2)
    assert [(row.type, row.read, row.bandwidth) for row in rows] == [
        ("TQ2_0", 25.2, 24.0),
        ("V2_5", 20.0, 25.0),
    ]
    assert rows[1].share == pytest.approx(0.8)
    assert kernels.parse(RECORDED, "prefill", 1536, 2)[1].share == pytest.approx(61 / 310)


def test_the_table_has_a_column_for_each_width(kernels):
    rows = kernels.parse(RECORDED, "memory", 1536, 2) + kernels.parse(RECORDED, "memory", 896, 2)[1:]
    lines = kernels.table(rows).splitlines()
    assert lines[0] == "| test | type | threads | K = 896 | K = 1536 |"
    assert lines[2] == "| memory | TQ2_0 | 2 |  | 25.2 GB/s, 105 % |"
    assert lines[3] == "| memory | V2_5 | 2 | 20.0 GB/s, 80 % | 20.0 GB/s, 80 % |"


def test_types_whose_blocks_do_not_fit_are_left_out(kernels):
    assert kernels.fitting(["TQ1_0", "V2", "Q4_0"], 896) == ["V2", "Q4_0"]


def test_the_program_is_run_for_each_width_and_the_results_saved(kernels, tmp_path, capsys):
    fake = program(tmp_path, f'echo "$@" >> {tmp_path}/calls\nprintf %s {shlex.quote(RECORDED)}')
    saved = tmp_path / "out.json"
    options = ["--types", "TQ2_0,V2_5", "--test", "memory", "--k", "1536", "--k", "3584", "--threads", "2"]
    assert kernels.main([str(fake), *options, "--save", str(saved)]) == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split("--k ")[1].split()[0] for call in calls] == ["1536", "3584"]
    assert "| memory | V2_5 | 2 | 20.0 GB/s, 80 % |" in capsys.readouterr().out
    document = json.loads(saved.read_text())
    assert document["benchmark"] == "kernels" and document["machine"]
    assert [row["k"] for row in document["results"]] == [1536, 1536, 3584, 3584]


@pytest.mark.parametrize("body", ["exit 3", "echo nothing that is a row"])
def test_a_program_that_fails_or_prints_too_little_is_an_error(kernels, tmp_path, capsys, body):
    fake = program(tmp_path, body)
    assert kernels.main([str(fake), "--types", "TQ2_0", "--k", "1536", "--threads", "1"]) == 1
    assert "ended with" in capsys.readouterr().err
