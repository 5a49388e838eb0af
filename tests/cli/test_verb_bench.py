from __future__ import annotations

import json
import stat

import pytest

from bitqwen import _native
from bitqwen.engine import Model

TINY = ("-p", "8", "-n", "4", "-r", "2", "-t", "1")


def test_rows_as_json(bitqwen, tiny_gguf):
    result = bitqwen("bench", tiny_gguf, *TINY, "-d", "0,32", "-o", "json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert [row["test"] for row in found["rows"]] == ["pp8", "tg4", "pp8 @ d32", "tg4 @ d32"]
    model = Model.open(tiny_gguf, threads=1)
    for row in found["rows"]:
        assert len(row["samples"]) == 2
        assert min(row["samples"]) <= row["tokens_per_second"] <= row["best"]
        assert row["isa"] == _native.isa_name()
        if row["kind"] == "tg":
            assert row["bytes_per_token"] > model.greedy_bytes
            assert row["head"] == ("screened" if model.screened else "exact")
            assert row["gb_per_second"] == pytest.approx(
                row["bytes_per_token"] * row["tokens_per_second"] / 1e9
            )
            assert row["bandwidth_share"] > 0
        assert row["joules_per_token"] is not None or row["energy_reason"]
    shallow, deep = (found["rows"][i]["bytes_per_token"] for i in (1, 3))
    config = model.config
    assert deep - shallow == pytest.approx(32 * 2 * config.layers * config.kv_heads * config.head_dim * 2)
    assert found["machine"]["cpu"]
    assert len(found["read_gb_per_second"]["1"]) == 2 * 4 * 4


def test_instruction_sets_and_threads_take_turns(bitqwen, tiny_gguf):
    isas = _native.usable_isas()
    wanted = ["scalar", isas[-1]] if len(isas) > 1 else ["scalar"]
    result = bitqwen(
        "bench",
        tiny_gguf,
        "-p",
        "0",
        "-n",
        "2",
        "-r",
        "2",
        "-t",
        "1,2",
        "--isa",
        ",".join(wanted),
        "-o",
        "jsonl",
    )
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["threads"], row["isa"]) for row in rows] == [(t, i) for t in (1, 2) for i in wanted]


def test_a_checkpoint_is_converted_to_each_scheme(bitqwen, tiny_folder):
    result = bitqwen("bench", tiny_folder, *TINY, "--scheme", "w4,q8_0", "-o", "jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines() if '"tg4"' in line]
    assert len(rows) == 2
    assert rows[0]["bytes_per_token"] < rows[1]["bytes_per_token"]


def test_table_and_compare(bitqwen, tiny_gguf, tmp_path):
    saved = tmp_path / "a.json"
    result = bitqwen("bench", tiny_gguf, *TINY)
    assert "±" in result.stdout
    assert "% of peak" in result.stdout
    saved.write_text(bitqwen("bench", tiny_gguf, *TINY, "-o", "json").stdout)
    compared = bitqwen("bench", "--compare", saved, saved)
    assert compared.returncode == 0, compared.stderr
    assert "1.000" in compared.stdout


def test_a_llama_bench_program_takes_its_turn(bitqwen, tiny_gguf, tmp_path):
    program = tmp_path / "llama-bench"
    program.write_text('#!/bin/sh\necho "[{\\"avg_ts\\": 50.0}]"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    result = bitqwen("bench", tiny_gguf, *TINY, "--against", program, "-o", "jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    theirs = [row for row in rows if row["engine"] == str(program)]
    assert [row["tokens_per_second"] for row in theirs] == [pytest.approx(50), pytest.approx(50)]
    assert all(row["bytes_per_token"] is None for row in theirs)


def test_a_program_that_says_nothing(bitqwen, tiny_gguf):
    result = bitqwen("bench", tiny_gguf, *TINY, "--against", "/bin/true")
    assert result.returncode == 1
    assert "gave no result" in result.stderr
    assert "fault of bitqwen" not in result.stderr


@pytest.mark.parametrize(
    ("peer", "module"), [("llama-cpp-python", "llama_cpp"), ("ik-llama-cpp-python", "ik_llama_cpp")]
)
def test_against_packages(bitqwen, tiny_gguf, peer, module):
    pytest.importorskip(module)
    result = bitqwen("bench", tiny_gguf, *TINY, "-d", "0,16", "--against", peer, "-o", "jsonl")
    if result.returncode:  # llama.cpp refuses vocabularies that it does not know; it says so itself
        assert peer in result.stderr
        return
    engines = {json.loads(line)["engine"] for line in result.stdout.splitlines()}
    assert engines == {"bitqwen", peer}


def test_against_another_model(bitqwen, tiny_gguf, tiny_folder, tmp_path):
    from bitqwen.convert import convert

    small = tmp_path / "small.gguf"
    convert(tiny_folder, small, "w4")
    result = bitqwen("bench", small, *TINY, "--against", tiny_gguf, "-o", "jsonl")
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["model"], row["peer"]) for row in rows if row["kind"] == "tg"] == [
        ("small.gguf", False),
        (tiny_gguf.name, True),
    ]
    assert rows[0]["bits_per_weight"] < rows[-1]["bits_per_weight"] == pytest.approx(16, abs=0.1)


def test_where_the_time_goes(bitqwen, tiny_gguf):
    result = bitqwen("bench", tiny_gguf, *TINY, "--profile")
    assert result.returncode == 0, result.stderr
    for words in ("where a token's time goes", "| gate_up |", "| outside |", "|a token, "):
        assert result.stdout.count(words) == 2
    saved = bitqwen("bench", tiny_gguf, *TINY, "--profile", "-o", "json")
    for row in json.loads(saved.stdout)["rows"]:
        operations = row["profile"]["operations"]
        assert {"attention", "gate_up", "down", "head"} <= {operation["name"] for operation in operations}
        assert 0 < sum(operation["seconds"] for operation in operations) <= row["profile"]["seconds"]


def test_pictures(bitqwen, tiny_gguf, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "out.svg"
    result = bitqwen("bench", tiny_gguf, *TINY, "-d", "0,8", "--plot", picture)
    assert result.returncode == 0, result.stderr
    assert "depth" in result.stderr
    text = picture.read_text()
    assert "Decoding speed by context" in text
    assert "tokens in the context" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "MODEL is missing"),
        (("{model}", "-p", "x"), "not a number"),
        (("{model}", "-p", "0", "-n", "0"), "nothing to measure"),
        (("{model}", "-t", "0"), "at least one thread"),
        (("{model}", "--isa", "mmx"), "cannot run"),
        (("{model}", "-n", "100000"), "100"),
        (("{model}", "--against", "nobody"), "no such engine"),
        (("{model}", "--against", "bitqwen=nowhere.gguf"), "no file nowhere.gguf"),
        (("{model}", "--plot", "out.jpg"), ".svg or .png"),
        (("nowhere.gguf",), "nowhere.gguf"),
    ],
)
def test_user_errors(bitqwen, tiny_gguf, arguments, words):
    result = bitqwen("bench", *(tiny_gguf if a == "{model}" else a for a in arguments))
    assert result.returncode in (2, 3)
    assert words in result.stderr
    assert "hint" in result.stderr or words == "100" or "at least" in words


def test_numa_is_told_beside_the_rows(bitqwen, tiny_gguf):
    result = bitqwen("bench", tiny_gguf, *TINY, "--numa", "-o", "json")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("NUMA: ")
    for row in json.loads(result.stdout)["rows"]:
        assert row["placement"] + "\n" == result.stderr
