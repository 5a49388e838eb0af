from __future__ import annotations

import numpy as np
import pytest

from bitqwen.calibrate import Calibration, backward, distillation
from bitqwen.calibrate.distillation import Student, distil
from bitqwen.checkpoints import open_checkpoint
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import UsageError
from bitqwen.gguf import GGUFFile
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Recipe

CHUNKS, CHUNK = 8, 24


@pytest.fixture
def teacher(tiny_checkpoint):
    source = tiny_checkpoint(layers=2, bias_scale=2.0)
    checkpoint = open_checkpoint(source.folder)
    return source.folder, checkpoint, config_from_hf(checkpoint.config, source="test")


@pytest.fixture
def ids():
    return np.random.default_rng(0).integers(0, 400, (CHUNKS, CHUNK))


@pytest.fixture
def quantised(teacher, tmp_path):
    path = tmp_path / "q2_k.gguf"
    convert(teacher[0], path, "q2_k")
    return path


def divergence(path, reference, ids):
    """Mean KL divergence of the engine's predictions, in nats."""
    ours, theirs = (Model.open(each, threads=1) for each in (path, reference))
    total = 0.0
    for chunk in ids.tolist():
        p, q = (each.logits(chunk).astype(np.float64) for each in (theirs, ours))
        p, q = (each - np.log(np.exp(each).sum(axis=1, keepdims=True)) for each in (p, q))
        total += float((np.exp(p) * (p - q)).sum(axis=1).mean())
    return total / len(ids)


def test_the_gradient_is_that_of_the_divergence(teacher, quantised, ids):
    _, checkpoint, config = teacher
    targets = distillation._targets(checkpoint, config, ids[:2], None)
    head = checkpoint.read("model.embed_tokens.weight")
    student = Student(GGUFCheckpoint(quantised), config)
    random = np.random.default_rng(1)
    distillation._gradient(student, config, ids[:2], targets, head)  # units of biases
    student.values[:] = 0.05 * random.standard_normal(len(student.values))
    gradient, _ = distillation._gradient(student, config, ids[:2], targets, head)
    start, reach = student.values.copy(), 0.02
    for name in student.names():
        place = student.place(name)
        if place is None:
            continue
        direction = np.zeros_like(start)
        direction[place] = random.choice(np.array([-1, 1], np.float32), place.stop - place.start)
        direction[place] += 2 * np.sign(gradient[place])  # so that there is something to see
        ends = []
        for sign in (-1, 1):
            student.values[:] = start + sign * reach * direction / np.linalg.norm(direction)
            ends.append(distillation._gradient(student, config, ids[:2], targets, head)[1])
        expected = float(gradient @ direction) / np.linalg.norm(direction)
        assert (ends[1] - ends[0]) / (2 * reach) == pytest.approx(expected, rel=0.05, abs=2e-5), name


def test_what_layers_computed_is_kept_or_computed_again_alike(teacher, quantised, ids, monkeypatch):
    _, checkpoint, config = teacher
    targets = distillation._targets(checkpoint, config, ids[:2], None)
    head = checkpoint.read("model.embed_tokens.weight")
    student = Student(GGUFCheckpoint(quantised), config)
    kept, _ = distillation._gradient(student, config, ids[:2], targets, head)
    monkeypatch.setattr(backward, "_MOST_KEPT", 0)
    again, _ = distillation._gradient(student, config, ids[:2], targets, head)
    np.testing.assert_array_equal(kept, again)


def test_a_distilled_file_is_nearer_to_its_source_and_no_larger(teacher, quantised, ids, tmp_path):
    folder, checkpoint, config = teacher
    convert(folder, tmp_path / "f32.gguf", "f16")
    output = tmp_path / "distilled.gguf"
    losses = distil(checkpoint, config, quantised, output, ids, rounds=4)
    assert len(losses) == 4  # 512 tokens together: all of this text
    before, after = (divergence(path, tmp_path / "f32.gguf", ids) for path in (quantised, output))
    assert losses[0] == pytest.approx(before, rel=0.05)
    assert losses[-1] < losses[0]
    assert after < 0.97 * before
    assert output.stat().st_size == quantised.stat().st_size
    old, new = GGUFFile(quantised), GGUFFile(output)
    assert list(new.tensors) == list(old.tensors)
    assert [each.type for each in new.tensors.values()] == [each.type for each in old.tensors.values()]
    changed = {name for name in new.tensors if not np.array_equal(new.raw(name), old.raw(name))}
    assert changed == set(new.tensors) - {"token_embd.weight"}


def test_an_interrupted_distillation_goes_on_where_it_was(teacher, quantised, ids, tmp_path, monkeypatch):
    _, checkpoint, config = teacher
    monkeypatch.setattr(distillation, "STEP_TOKENS", 2 * CHUNK)
    whole = tmp_path / "whole.gguf"
    losses = distil(checkpoint, config, quantised, whole, ids)
    assert len(losses) == CHUNKS // 2
    kept, output = tmp_path / "kept", tmp_path / "out.gguf"
    kept.mkdir()

    def stop(done, steps, _):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(checkpoint, config, quantised, output, ids, kept=kept, progress=stop)
    assert not output.exists()
    told = []
    again = distil(
        checkpoint, config, quantised, output, ids, kept=kept, progress=lambda *each: told.append(each[:2])
    )
    assert told == [(3, 4), (4, 4)]
    assert again == losses
    assert output.read_bytes() == whole.read_bytes()


def test_no_more_of_a_text_is_used_than_helps(teacher, quantised, ids, tmp_path, monkeypatch):
    _, checkpoint, config = teacher
    monkeypatch.setattr(distillation, "STEP_TOKENS", CHUNK)
    monkeypatch.setattr(distillation, "MOST_TOKENS", 3 * CHUNK)
    assert len(distil(checkpoint, config, quantised, tmp_path / "out.gguf", ids)) == 3


def test_what_was_kept_and_is_damaged_is_made_anew(teacher, quantised, ids, tmp_path):
    _, checkpoint, config = teacher
    losses = distil(checkpoint, config, quantised, tmp_path / "whole.gguf", ids)
    (tmp_path / distillation._STATE).write_bytes(b"nothing")
    np.save(tmp_path / distillation._TARGETS, np.zeros(3))
    assert distil(checkpoint, config, quantised, tmp_path / "out.gguf", ids, kept=tmp_path) == losses


def test_a_recipe_may_end_with_it(teacher, tmp_path):
    folder, _, _ = teacher
    text = "def add(first, second):\n    return first + second\n\n" * 400
    told = []
    for recipe in ("fit", "fit+distil", "fit+gptq+distil:3"):
        convert(
            folder,
            tmp_path / f"{recipe}.gguf".replace(":", ""),
            "q2_k",
            calibration=Calibration(text=text, tokens=512, chunk=64, recipe=recipe, resume=True),
            progress=lambda step: told.append(step.tensor),
        )
    steps = [each.partition(",")[0] for each in told if each.startswith("distillation")]
    assert steps == [f"distillation {step}" for step in ("1/1", "1/3", "2/3", "3/3")]
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == sorted(
        path.name for path in tmp_path.iterdir() if path.name.startswith(("fit", ".fit"))
    )
    settings = GGUFFile(tmp_path / "fit+distil.gguf").metadata["bitqwen.settings"]
    assert "fit+distil" in settings
    plain, distilled = (GGUFFile(tmp_path / f"{name}.gguf") for name in ("fit", "fit+distil"))
    name = "blk.1.attn_norm.weight"
    assert not np.array_equal(plain.raw(name), distilled.raw(name))


def test_rounds_are_bounded():
    assert Recipe.parse("fit+distil:2").distil == 2
    assert Recipe.parse("fit").distil == 0
    with pytest.raises(UsageError, match="distil takes a number from 1 to 20"):
        Recipe.parse("fit+distil:0")
