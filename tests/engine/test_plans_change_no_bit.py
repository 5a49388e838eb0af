"""A plan, however odd, changes no bit of a model's logits."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.gguf import GGUFFile
from bitqwen.kernels import candidates, compiler, plans, products
from bitqwen.kernels.plans import BATCHES, Choice, Entry, Timing

IDS = np.random.default_rng(0).integers(0, 500, 40).tolist()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path))


@pytest.fixture(scope="module", params=["w4", "ternary", "v2.5", "f16"])
def path(request, tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(tied=False, heads=6, kv_heads=2, hidden=768, head_dim=128)
    return convert(source.folder, tmp_path_factory.mktemp("plans") / "out.gguf", request.param).path


def logits(path, **options):
    """After a prompt, three tokens together and one alone: every kind of batch."""
    model = Model.open(path, threads=2, context=128, **options)
    with model.session() as session:
        parts = [session.feed(ids, logits="all") for ids in (IDS[:30], IDS[30:33], IDS[33:34])]
    return np.concatenate(parts)


def entries(path, choices):
    """A plan for every product of a file, its choices in turns."""
    turns = itertools.cycle(choices)
    return [
        Entry(p.key, batch, 1, p.key.rows, 1, Timing(next(turns), 1.0), Timing(next(turns), 1.0), None, 0.0)
        for p in products.of_file(GGUFFile(path))
        for batch in BATCHES
    ]


def test_odd_plans_give_the_same_bits(path):
    expected = logits(path, tuning=False)
    isas = _native.usable_isas()
    odd = [Choice(isa, rows, tile) for isa in isas for rows in (16, 48, 4096) for tile in (0, 1, 3)]
    for start in range(0, len(odd), 4):
        plans.save(plans.here(2), entries(path, odd[start:] + odd[:start]))
        np.testing.assert_array_equal(logits(path), expected)


def test_generated_kernels_give_the_same_bits(path, caplog):
    made = candidates.compiled(products.of_file(GGUFFile(path)))
    if not made.libraries:
        pytest.skip(made.why_not)
    expected = logits(path, tuning=False)
    for rows in (16, 64, 192):
        choice = Choice(_native.isa_name(), rows, 0, made.libraries[0])
        plans.save(plans.here(2), entries(path, [choice]))
        assert any(row[-1] for row in plans.rows(plans.load(plans.here(2)).values()))
        np.testing.assert_array_equal(logits(path), expected)
    assert caplog.records == []


def test_a_library_that_does_not_load_is_left_out(path, caplog):
    library = compiler.library_folder() / "lut-0123456789abcdef0123.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"\x7fELF nothing more")
    plans.save(plans.here(2), entries(path, [Choice(_native.isa_name(), 64, 0, library.name)]))
    np.testing.assert_array_equal(logits(path), logits(path, tuning=False))
    assert "Generated kernels are not used" in caplog.text
