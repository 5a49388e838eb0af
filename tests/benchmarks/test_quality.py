from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bitqwen.gguf import GGUFFile

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TEXT = "The count of words in this text is small, and yet each of them is read once by the model.\n" * 400


@pytest.fixture(scope="module")
def scripts():
    """The scripts import each other, as they do when one of them is run."""
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(BENCHMARKS))
    import quality
    import quality_plots
    import recipe_steps
    import schemes

    yield argparse.Namespace(quality=quality, plots=quality_plots, schemes=schemes, recipe_steps=recipe_steps)
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def comparison(scripts, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    source = tiny_checkpoint(layers=2, hidden=256, intermediate=512)
    (folder / "held.txt").write_text(TEXT)
    options = argparse.Namespace(
        source=source.folder,
        work=folder / "work",
        llama_quantize=None,
        keep=True,
        chunks=1,
        tokens=1024,
        recipe="fit+gptq",
        text=[f"held={folder / 'held.txt'}"],
    )
    return scripts.quality.Comparison(options)


@pytest.fixture(scope="module")
def rows(comparison):
    size = comparison.neutral.stat().st_size
    return [comparison.ours(int(size * share), name) for share, name in ((0.42, "large"), (0.40, "small"))]


def test_our_files_are_no_larger_and_say_how_they_were_made(comparison, rows):
    size = comparison.neutral.stat().st_size
    for row, share in zip(rows, (0.42, 0.40), strict=True):
        assert row["bytes"] <= share * size
        assert set(row["texts"]) == {"held"}
        assert row["texts"]["held"]["low"] <= row["texts"]["held"]["kl"] <= row["texts"]["held"]["high"]
        assert row["recipe"] == "fit+gptq"
        assert sum(row["weights"].values()) == sum(
            np.prod(shape) for shape in comparison.checkpoint.shapes().values() if len(shape) == 2
        )


def test_matrices_that_two_files_store_alike_are_made_once(comparison, rows):
    first, second = (row["types"] for row in rows)
    made = {path.name for path in (comparison.work / "matrices-fit-gptq").glob("*.npz")}
    wanted = {(n, t) for types in (first, second) for n, t in types.items() if "layers" in n}
    assert len(made) == len(wanted)
    assert any(first[name] == second[name] for name in first)


def test_what_was_kept_makes_the_same_file(comparison, rows):
    """Its matrices come from the library this time."""
    size = comparison.neutral.stat().st_size
    path = comparison.work / "bitqwen-large-fit-gptq.gguf"
    before = path.read_bytes()
    path.unlink()
    assert comparison.ours(int(size * 0.42), "large")["texts"] == rows[0]["texts"]
    assert path.read_bytes() == before


def test_a_distilled_file_has_other_norms_and_its_matrices_from_the_library(comparison, rows, monkeypatch):
    kept = {path.name for path in (comparison.work / "matrices-fit-gptq").glob("*.npz")}
    monkeypatch.setattr(comparison, "recipe", "fit+gptq+distil")
    size = comparison.neutral.stat().st_size
    row = comparison.ours(int(size * 0.42), "large")
    assert {path.name for path in (comparison.work / "matrices-fit-gptq").glob("*.npz")} == kept
    assert row["bytes"] == rows[0]["bytes"]
    assert row["types"] == rows[0]["types"]
    swept, distilled = (
        GGUFFile(comparison.work / f"bitqwen-large-{recipe}.gguf")
        for recipe in ("fit-gptq", "fit-gptq-distil")
    )
    assert np.array_equal(swept.raw("token_embd.weight"), distilled.raw("token_embd.weight"))
    for name in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.1.attn_k.bias"):
        assert not np.array_equal(swept.raw(name), distilled.raw(name))


@pytest.fixture
def document(comparison, rows):
    theirs = {**rows[0], "bytes": rows[0]["bytes"] + 1, "measured": "2025-12-31"}
    files = {
        "Q2_K": {"llama.cpp": theirs, "bitqwen": rows[0]},
        "IQ2_M": {"llama.cpp": {**rows[1], "bytes": rows[1]["bytes"] + 5}},
    }
    nats = {name: each.nats for name, each in comparison.sensitivity.items()}
    machine = {"cpu": "A CPU", "cores": 2, "date": "2026-01-01"}
    return {"machine": machine, "results": {"files": files, "sensitivity": nats}}


def test_the_table_has_both_sides_their_ratio_and_the_wanted_one(scripts, document, capsys):
    scripts.quality.show(document)
    lines = capsys.readouterr().out.splitlines()
    assert [line.count("|") for line in lines[2:]] == [lines[2].count("|")] * 5
    assert lines[4].startswith("| Q2_K | llama.cpp |")
    assert lines[4].endswith("|  |  | 2025-12-31 |")
    measured = document["results"]["files"]["Q2_K"]["bitqwen"]["measured"]
    assert lines[5].endswith(f"| 1.00 | 0.50 | {measured} |")
    assert lines[6].startswith("| IQ2_M | llama.cpp |")


def test_pictures_are_the_same_bytes_each_time(scripts, document, tmp_path, monkeypatch):
    (tmp_path / "quality.json").write_text(json.dumps(document))
    drawn = []
    for folder in ("first", "second"):
        monkeypatch.setattr(
            sys, "argv", ["plots", str(tmp_path / "quality.json"), "--output", str(tmp_path / folder)]
        )
        scripts.plots.main()
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) == {"quality_by_bytes.svg", "sensitivity.svg"}
    for word in (b"llama.cpp", b"bitqwen", b"Q2_K", b"IQ2_M"):
        assert word in drawn[0]["quality_by_bytes.svg"]
    for kind in scripts.plots.KINDS:
        assert f">{kind}<".encode() in drawn[0]["sensitivity.svg"]


def test_each_step_of_a_recipe_leaves_less(scripts, comparison, tmp_path, monkeypatch, capsys):
    comparison.moments  # noqa: B018  # are kept in the folder
    save = tmp_path / "steps.json"
    command = ["recipe_steps", str(comparison.work), "--layers", "1", "--type", "V2_5", "--chunks", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--save", str(save)])
    scripts.recipe_steps.main()
    found = json.loads(save.read_text())["results"]["matrices"]
    assert len(found) == 8  # a layer's, and the head
    for name, each in found.items():
        shares = [recipe["lost"] for recipe in each.values()]
        assert 0 < shares[0] < 0.5, name
        assert min(shares) > 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| model.embed_tokens |")
    assert lines[-1].count("|") == lines[-10].count("|") == len(scripts.recipe_steps.RECIPES) + 2


def test_schemes_are_measured_once_and_written_as_the_package_reads_them(
    scripts, comparison, tmp_path, monkeypatch
):
    from bitqwen.measure import published

    assert comparison.saved.layout.context == 512
    path = tmp_path / "published.json"
    command = ["schemes", str(comparison.work), "--chunks", "1", "--save", str(path)]
    monkeypatch.setattr(sys, "argv", [*command, "--schemes", "w4"])
    scripts.schemes.main()
    once = json.loads(path.read_text())
    monkeypatch.setattr(scripts.schemes, "convert", _only_w2(scripts.schemes.convert))
    monkeypatch.setattr(sys, "argv", [*command, "--schemes", "w4,w2"])
    scripts.schemes.main()
    monkeypatch.setattr(published, "PATH", path)
    found = published.load.__wrapped__()
    assert list(found.schemes) == ["w4", "w2"]
    assert found.schemes["w4"].kl == once["schemes"]["w4"]["kl"]
    assert found.schemes["w4"].worst < found.schemes["w2"].worst
    assert found.is_of(comparison.config)
    assert "not measured" in found.in_words("v3")
    assert found.in_words("w2").endswith(found.schemes["w2"].verdict)


def _only_w2(convert):
    def run(source, path, scheme, **options):
        assert scheme == "w2", "w4 was there already"
        return convert(source, path, scheme, **options)

    return run
