from __future__ import annotations

import json
import shlex

import pytest

LOOPS = [
    {"threads": 1, "cores": 2, "work_us": 250.0, "joined_us": [0.01, 0.01], "working_us": [0.5, 3.0]},
    {"threads": 8, "cores": 2, "work_us": 250.0, "working_us": [2.0, 10.0], "woken_us": [7.0, 15.0]},
]


@pytest.fixture
def barriers(script):
    return script("barriers")


def program(folder, code=0):
    path = folder / "barrier_benchmark"
    lines = "\n".join(json.dumps(row) for row in LOOPS)
    output = f"printf '%s\\n' {shlex.quote(lines)}"  # no `cat`: PATH may lack it
    path.write_text(f"#!/bin/sh\n{output}\necho wrong >&2\nexit {code}\n")
    path.chmod(0o755)
    return path


def test_the_share_of_a_token(barriers):
    decoded = {"model": "m", "barriers": 100, "token_ms": {"1": 20.0, "8": 10.0}}
    rows = barriers.table(LOOPS, decoded).splitlines()
    assert rows[2] == "| 1 | 0.01, 0.01 | 0.50, 3.00 |  | 0.00 | 20.00 | 0.0% |"
    assert rows[3] == "| 8 |  | 2.00, 10.00 | 7.00, 15.00 | 1.00 | 10.00 | 10.0% |"


def test_loops_alone_are_saved_with_the_machine(barriers, tmp_path, capsys):
    saved = tmp_path / "saved.json"
    assert barriers.main([str(program(tmp_path)), "--save", str(saved)]) == 0
    document = json.loads(saved.read_text())
    assert document["results"] == {"loops": LOOPS, "decode": None}
    assert document["machine"]["cpu"]
    assert "| 8 |  | 2.00, 10.00 | 7.00, 15.00 |" in capsys.readouterr().out


def test_a_program_that_fails_is_quoted(barriers, tmp_path, capsys):
    assert barriers.main([str(program(tmp_path, code=3))]) == 1
    assert "ended with 3: wrong" in capsys.readouterr().err


def test_a_token_s_barriers_are_counted(barriers, tiny_checkpoint, tmp_path):
    from bitqwen.convert import convert
    from bitqwen.engine import Model

    path = convert(tiny_checkpoint().folder, tmp_path / "w4.gguf", "w4").path
    layers = Model.open(path, threads=2).config.layers
    decoded = barriers.decode(path, [1, 2], rounds=1)
    # Attention of two heads is shared too; one token's norms and rotations are not.
    assert 3 * layers <= decoded["barriers"] <= 5 * layers + 3
    assert decoded["token_ms"].keys() == {"1", "2"}
