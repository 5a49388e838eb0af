from __future__ import annotations

import numpy as np
import pytest

from bitqwen.convert import convert
from bitqwen.gguf import GGUFFile
from bitqwen.gguf.rewrite import add_metadata
from bitqwen.measure import receipt


@pytest.fixture(scope="module")
def files(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("receipt")
    source = tiny_checkpoint(layers=1)
    for scheme in ("f16", "q8_0", "w2"):
        convert(source.folder, folder / f"{scheme}.gguf", scheme)
    return folder


def test_a_receipt_tells_a_faithful_file_from_a_ruined_one(files):
    taken = {
        scheme: receipt.take(files / f"{scheme}.gguf", files / "f16.gguf", source="tiny", chunks=2)
        for scheme in ("f16", "q8_0", "w2")
    }
    assert set(taken["w2"].domains) == {"prose", "code"}
    assert taken["f16"].domains["code"].kl == pytest.approx(0, abs=1e-9)
    assert taken["f16"].domains["code"].same_top == 1
    for name in ("prose", "code"):
        assert taken["q8_0"].domains[name].kl < taken["w2"].domains[name].kl
        assert taken["w2"].domains[name].tokens == 2 * 255
    assert taken["q8_0"].verdict == "faithful"
    assert 8 < taken["q8_0"].bits_per_weight < 9
    assert taken["q8_0"].nbytes == (files / "q8_0.gguf").stat().st_size


def test_a_receipt_stays_with_its_file(files, tmp_path):
    path = tmp_path / "out.gguf"
    path.write_bytes((files / "w2.gguf").read_bytes())
    taken = receipt.take(path, files / "f16.gguf", source="tiny", chunks=1)
    receipt.attach(path, taken)
    again = receipt.read(GGUFFile(path).metadata, path.stat().st_size)
    assert again is not None
    assert again.verdict == taken.verdict
    assert again.domains["prose"].kl == pytest.approx(taken.domains["prose"].kl, rel=1e-6)
    assert again.domains["prose"].tokens == 255
    before, after = GGUFFile(files / "w2.gguf"), GGUFFile(path)
    for name in before.tensors:
        np.testing.assert_array_equal(before.raw(name), after.raw(name))
    for key in before.metadata:
        assert before.metadata[key] == after.metadata[key]
        assert before.metadata.value_type(key) == after.metadata.value_type(key)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out.gguf"]


def test_a_key_that_is_there_takes_the_new_value(files, tmp_path):
    path = tmp_path / "out.gguf"
    path.write_bytes((files / "q8_0.gguf").read_bytes())
    add_metadata(path, {"general.name": "another", "new.key": [1, 2, 3]})
    metadata = GGUFFile(path).metadata
    assert metadata["general.name"] == "another"
    assert metadata["new.key"] == [1, 2, 3]


@pytest.mark.parametrize("spoil", ["bitqwen.receipt.prose.kl", "bitqwen.receipt.reference", None])
def test_a_file_without_a_whole_receipt_has_none(spoil):
    domain = receipt.Domain(0.1, 0.0, 0.2, 0.9, 1.1, 255)
    metadata = receipt.Receipt({"prose": domain}, "source", 10, 4.5, 1.0).to_metadata()
    assert receipt.read(metadata, 10).domains["prose"] == domain
    metadata.pop(spoil) if spoil else metadata.update({"bitqwen.receipt.domains": 3})
    assert receipt.read(metadata, 10) is None


@pytest.mark.parametrize(
    ("kl", "verdict"), [(0.01, "faithful"), (0.2, "usable"), (0.9, "degraded"), (9.0, "gibberish")]
)
def test_the_worst_domain_decides(kl, verdict):
    domains = {
        "prose": receipt.Domain(0.001, 0, 0.1, 1.0, 1.0, 10),
        "code": receipt.Domain(kl, 0, 9, 0.5, 1.0, 10),
    }
    assert receipt.Receipt(domains, "source", 1, 1.0, 1.0).verdict == verdict
