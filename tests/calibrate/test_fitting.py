from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bitqwen.calibrate import Calibration, calibration, fit_to_size, weights_to_bytes
from bitqwen.checkpoints import open_checkpoint
from bitqwen.cli.fitting import parse_size
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import UsageError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile, TensorType
from bitqwen.measure import evaluate, passage
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import TensorPlan
from bitqwen.texts import packaged_text
from helpers.tiny_checkpoint import write_safetensors

TEXT = Calibration(text="def add(first, second):\n    return first + second\n\n" * 400, tokens=512, chunk=64)


@pytest.fixture(scope="module")
def model(tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitting")
    source = tiny_checkpoint(layers=2, hidden=256, intermediate=512)
    convert(source.folder, folder / "f16.gguf", "f16")
    checkpoint = open_checkpoint(source.folder)
    return folder, source, checkpoint, config_from_hf(checkpoint.config, source="test")


@pytest.mark.parametrize("bits", [3.3, 4.4, 5.8])
def test_a_file_is_as_large_as_was_asked_for(model, tmp_path, bits):
    _, source, checkpoint, config = model
    budget = weights_to_bytes(checkpoint, config, bits)
    found = fit_to_size(checkpoint, config, budget, calibration=TEXT)
    report = convert(source.folder, tmp_path / "out.gguf", plans=found.plans)
    assert report.nbytes <= budget
    assert report.bits_per_weight() == pytest.approx(bits, rel=0.08)
    assert report.bits_per_weight() <= bits
    assert GGUFFile(tmp_path / "out.gguf").metadata["bitqwen.scheme"] == "mixed"
    smaller, larger = found.neighbours.values()
    assert larger < found.loss
    assert smaller is None or smaller > found.loss


def test_the_loss_to_expect_is_about_what_is_measured(model, tmp_path):
    folder, source, checkpoint, config = model
    found = fit_to_size(checkpoint, config, weights_to_bytes(checkpoint, config, 4.6))
    convert(source.folder, tmp_path / "out.gguf", plans=found.plans)
    files = [tmp_path / "out.gguf", folder / "f16.gguf"]
    tokenizer = Tokenizer.from_gguf(GGUFFile(files[0]).metadata)
    text = passage("prose", packaged_text("prose"), tokenizer, context=256, chunks=2)
    ours, theirs = (Model.open(path, threads=1) for path in files)
    (result,) = evaluate(ours, [text], theirs)
    assert found.loss / 4 < result.divergence.kl.value < found.loss * 4


def test_a_matrix_stored_twice_counts_once_for_both_uses(tiny_checkpoint):
    """As in official GGUF files, which hold one matrix as embedding and as output."""
    source = tiny_checkpoint(layers=1, stored_head=True, config={"tie_word_embeddings": False}, seed=4)
    weights = {**source.weights, "lm_head.weight": source.weights["model.embed_tokens.weight"]}
    write_safetensors(source.folder / "model.safetensors", weights, "BF16")
    twice = open_checkpoint(source.folder)
    once = open_checkpoint(tiny_checkpoint(layers=1, seed=4).folder)
    found = []
    for checkpoint in (twice, once):
        config = config_from_hf(checkpoint.config, source="test")
        budget = weights_to_bytes(checkpoint, config, 4.5)
        found.append(fit_to_size(checkpoint, config, budget, calibration=TEXT))
    assert found[0].plans == found[1].plans
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-3)
    assert "lm_head.weight" not in found[0].plans


def test_budgets_that_no_type_meets(model):
    _, _, checkpoint, config = model
    with pytest.raises(UsageError, match="does not fit into 1,000 bytes"):
        fit_to_size(checkpoint, config, 1000, calibration=TEXT)


@pytest.mark.parametrize(
    ("text", "size"), [("700MB", 700_000_000), ("1.5 GB", 1_500_000_000), ("2GiB", 2 << 30), ("900b", 900)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["700", "MB", "-3MB", "7XB", "1e9B", ""])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_the_head_is_fitted_by_what_its_inputs_are(model, tmp_path):
    """As the loss of each type was measured: else --fit would count on less than the file loses."""
    _, source, checkpoint, config = model
    found = fit_to_size(checkpoint, config, weights_to_bytes(checkpoint, config, 3.3))
    (name,) = found.importance
    weights = found.importance[name]
    assert name == "model.embed_tokens.weight"  # tied
    matrix = checkpoint.read(name)
    plans = dict.fromkeys(found.plans, TensorPlan(TensorType.Q3_K, "mse"))  # in a file that is not rotated
    lost = []
    for importance in (None, found.importance):
        convert(source.folder, tmp_path / "out.gguf", plans=plans, importance=importance)
        off = GGUFFile(tmp_path / "out.gguf").read("token_embd.weight") - matrix
        lost.append((np.square(off) * weights).sum())
    assert lost[1] < 0.99 * lost[0]


def test_what_was_measured_of_first_tokens_is_not_measured_again(model, tmp_path, monkeypatch):
    _, source, checkpoint, config = model
    found = fit_to_size(checkpoint, config, weights_to_bytes(checkpoint, config, 3.3), calibration=TEXT)
    files = [tmp_path / "again.gguf", tmp_path / "kept.gguf"]
    convert(source.folder, files[0], plans=found.plans, calibration=TEXT)
    monkeypatch.setattr(calibration, "first_token_weights", None)
    kept = replace(TEXT, first_weights=found.first_weights)
    convert(source.folder, files[1], plans=found.plans, calibration=kept)
    assert files[0].read_bytes() == files[1].read_bytes()
