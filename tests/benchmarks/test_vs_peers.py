from __future__ import annotations

import importlib
import json
import shlex
import stat
import sys
from pathlib import Path

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.errors import BitqwenError
from bitqwen.gguf import GGUFFile
from bitqwen.measure.bench import Test

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# What llama-bench prints with -o json, shortened to a row that it gave for a model of 1.5B.
RECORDED = [
    {
        "build_commit": "unknown",
        "cpu_info": "AMD EPYC 9B14",
        "model_type": "qwen2 1.5B Q4_0",
        "model_size": 886079488,
        "n_threads": 2,
        "n_prompt": 0,
        "n_gen": 4,
        "avg_ns": 98765432,
        "avg_ts": 40.5,
        "stddev_ts": 0.0,
        "samples_ns": [98765432],
        "samples_ts": [40.5],
    }
]


@pytest.fixture(scope="module", autouse=True)
def path_of_the_scripts():
    sys.path.insert(0, str(BENCHMARKS))
    yield
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.split(".")[0] in ("peers", "vs_peers")]:
        del sys.modules[name]


def part(name):
    return importlib.import_module(f"peers.{name}")


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "tiny.gguf"
    convert(tiny_checkpoint(hidden=256, intermediate=512, tied=True).folder, path, "f16")
    return path


def record(ours, theirs, *, kind="tg", contest="ternary-q4", sizes=(100, 400), bandwidth=100_000, **more):
    return {
        "contest": contest,
        "test": "tg64",
        "kind": kind,
        "threads": 2,
        "machine": {"cpu": "A CPU", "isa": ["avx2"], "date": "2026-01-02T03:04"},
        "bandwidth": bandwidth,
        "int8_rate": 1e12,
        "peer": "llama.cpp",
        "type": "TQ1_0",
        "counts": True,
        "ours": {"file": "bitqwen-ternary.gguf", "samples": ours, "bytes": sizes[0], "int8_share": 0.5},
        "theirs": {"file": "llama.cpp-TQ1_0.gguf", "samples": theirs, "bytes": sizes[1]},
    } | more


def test_bytes_of_a_file_are_its_tensors(tiny):
    tensors = GGUFFile(tiny).tensors
    about = part("weights").layout(tiny)
    assert about.shapes == {name: info.shape[::-1] for name, info in tensors.items()}
    assert all(0 <= about.sizes[name] - info.nbytes < 32 for name, info in tensors.items())
    assert part("weights").bytes_per_token(tiny) == sum(about.sizes.values())


def test_an_embedding_that_is_no_head_is_not_read(tiny_checkpoint, tmp_path):
    path = tmp_path / "untied.gguf"
    convert(tiny_checkpoint(tied=False).folder, path, "f16")
    about = part("weights").layout(path)
    read = part("weights").bytes_per_token(path)
    assert read == sum(about.sizes.values()) - about.sizes["token_embd.weight"]


def test_a_file_that_is_no_gguf(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_bytes(b"not a model" * 10)
    with pytest.raises(ValueError, match=r"text\.gguf is not a GGUF file"):
        part("weights").layout(path)


def test_tl2_keeps_all_but_the_matrices_of_layers(tiny, tmp_path):
    output = tmp_path / "tl2.gguf"
    part("filled").tl2(tiny, output)
    before, after = part("weights").layout(tiny), part("weights").layout(output)
    assert (after.metadata, after.shapes) == (before.metadata, before.shapes)
    assert set(after.types.values()) == {0, 1, 39}
    for name, shape in before.shapes.items():
        copied = len(shape) == 1 or not name.startswith("blk.")
        assert (after.types[name] == before.types[name]) == copied
        if copied:
            assert read(output, after, name) == read(tiny, before, name)
        else:
            assert after.sizes[name] == part("filled").tl2_nbytes(*shape)
            (scale,) = np.frombuffer(read(output, after, name)[-32:-28], np.float32)
            assert scale == np.float32(0.01)


def read(path, about, name):
    begin = about.data + about.offsets[name]
    return path.read_bytes()[begin : begin + about.sizes[name]]


def test_tl2_takes_five_bits_for_three_weights():
    # 1280 x 256 weights in triples, 256 x 256 in pairs, rounded up to 32 bytes, and 32 for the scale.
    assert part("filled").tl2_nbytes(1536, 256) == 84_672 + 32


def test_a_full_file_repeats_the_blocks_of_a_narrow_one(tiny_checkpoint, tmp_path):
    source, small, narrow, full = (
        tmp_path / f"{name}.gguf" for name in ("source", "small", "narrow", "full")
    )
    made = tiny_checkpoint(layers=1, hidden=512, intermediate=1024, heads=8, kv_heads=1, tied=True)
    convert(made.folder, source, "f16")
    part("filled").small_source(source, small)
    assert part("weights").layout(small).shapes["blk.0.ffn_down.weight"] == (512, 256)
    assert GGUFFile(small).metadata["qwen2.embedding_length"] == 256
    convert(small, narrow, "q2_k")
    part("filled").fill(source, narrow, full)
    wide, blocks = GGUFFile(full), GGUFFile(narrow)
    for name, info in GGUFFile(source).tensors.items():
        assert wide.tensors[name].shape == info.shape
        assert wide.tensors[name].type == blocks.tensors[name].type
    expected = np.resize(np.tile(blocks.read("blk.0.attn_output.weight"), 2), (512, 512))
    np.testing.assert_array_equal(wide.read("blk.0.attn_output.weight"), expected)
    np.testing.assert_array_equal(
        wide.read("blk.0.attn_norm.weight"), GGUFFile(source).read("blk.0.attn_norm.weight")
    )


def test_a_run_beside_a_recorded_llama_bench(tiny, tmp_path):
    plan = part("plan")
    for name in ("bitqwen-w2.gguf", "llama.cpp-Q2_K.gguf"):
        (tmp_path / name).symlink_to(tiny)
    contest = plan.CONTESTS["w2"]
    arguments = {"files": tmp_path, "threads": 1, "rounds": 2}
    (found,) = part("run").measure(
        contest,
        contest.rivals[:1],
        Test("tg", 4),
        programs={"llama.cpp": program(tmp_path, json.dumps(RECORDED))},
        **arguments,
    )
    assert found["theirs"]["samples"] == pytest.approx([40.5, 40.5])
    assert len(found["ours"]["samples"]) == 2
    assert found["theirs"]["bytes"] == part("weights").bytes_per_token(tiny)
    assert (found["contest"], found["peer"], found["type"]) == ("w2", "llama.cpp", "Q2_K")
    assert f"{found['ours']['samples'][0] / 40.5:.2f}"[:3] in part("table").markdown([found])
    with pytest.raises(BitqwenError, match="gave no result"):
        part("run").measure(
            contest,
            contest.rivals[:1],
            Test("tg", 4),
            programs={"llama.cpp": program(tmp_path, "error: unknown type")},
            **arguments,
        )


def program(folder, output):
    path = folder / "llama-bench"
    path.write_text(f"#!/bin/sh\nprintf '%s\\n' {shlex.quote(output)}\n")  # no `cat`: PATH may lack it
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_depth_is_beside_no_depth(tiny, tmp_path):
    contest = part("plan").CONTESTS["ternary-q4"]
    (tmp_path / contest.ours).symlink_to(tiny)
    found = part("run").depth(contest, 4, 16, files=tmp_path, threads=1, rounds=2)
    assert (found["test"], found["type"]) == ("tg4 @ d16", "tg4")
    assert found["ours"]["bytes"] > found["theirs"]["bytes"]
    assert part("table").wanted(found) == 0.75


def test_a_ratio_is_taken_round_by_round():
    found = record([40.0, 10.0, 42.0], [20.0, 5.0, 30.0])
    assert part("table").ratios(found) == [2.0, 2.0, 1.4]
    assert part("table").ratio(found) == 2.0


def test_bytes_bound_what_is_wanted_of_decoding():
    wanted = part("table").wanted
    assert wanted(record([200.0], [100.0])) == 2.0  # the peer reads at 40 % of the bandwidth
    assert wanted(record([200.0], [200.0])) == 2.0  # at 80 %, but 0.9 x 4 is more than was asked
    assert wanted(record([200.0], [200.0], sizes=(300, 400))) == pytest.approx(1.2)
    assert wanted(record([200.0], [200.0], counts=False)) is None
    assert wanted(record([200.0], [100.0], kind="pp")) == 1.6
    assert wanted(record([200.0], [100.0], kind="pp", contest="v2")) is None


def test_the_table_says_what_is_met():
    met = record([210.0, 220.0], [100.0, 100.0])
    missed = record([150.0, 150.0], [100.0, 100.0], contest="w2", type="Q2_K")
    text = part("table").markdown([met, missed, record([300.0], [200.0], kind="pp")])
    assert "### Decode, 2 threads" in text
    assert "**2.15** (2.10 to 2.20) | 2.00: met" in text
    assert "**1.50** (1.50 to 1.50) | 2.00: not met" in text
    assert "### Prefill, 2 threads" in text
    assert "Our ternary-q4, multiply-adds a second over the int8 peak: 50 %; wanted 65 %: not met." in text
    assert "Measured on A CPU (avx2), 2026-01-02" in text


def test_a_later_run_takes_the_place_of_an_earlier(tmp_path):
    table = part("table")
    path = tmp_path / "results" / "peers.json"
    first, other = record([1.0], [1.0]), record([2.0], [1.0], type="TQ2_0")
    table.save(path, table.merge(table.load(path), [first, other]))
    table.save(path, table.merge(table.load(path), [record([3.0], [1.0])]))
    assert [(r["type"], r["ours"]["samples"]) for r in table.load(path)] == [
        ("TQ1_0", [3.0]),
        ("TQ2_0", [2.0]),
    ]
    assert not list(path.parent.glob("*.part"))


def test_every_contest_has_files_of_its_own_names():
    contests = part("plan").CONTESTS
    assert set(contests) == {"ternary-q4", "ternary", "w2", "v2", "v2.5", "v3", "q4_k_m", "w4"}
    for contest in contests.values():
        assert any(rival.counts for rival in contest.rivals)
        assert {rival.peer for rival in contest.rivals} <= set(part("plan").PEERS)


@pytest.mark.parametrize("peer", ["llama.cpp", "other=/bin/true", "llama.cpp=/nowhere/llama-bench"])
def test_a_peer_that_is_not_there(peer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vs_peers.py", str(tmp_path), "--peer", peer])
    with pytest.raises(SystemExit):
        importlib.import_module("vs_peers").main()
    assert "--peer" in capsys.readouterr().err
