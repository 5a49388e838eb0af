"""Files whose matrices are stored in rotated columns: what they hold, that they run, what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from bitqwen.calibrate import Calibration
from bitqwen.checkpoints import open_checkpoint
from bitqwen.cli.inspection import inspect_path
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import ModelFileError
from bitqwen.gguf import GGUFFile, GGUFWriter, TensorType
from bitqwen.gguf.rewrite import add_metadata, rewrite
from bitqwen.quant import TensorPlan

SMALL = {"hidden": 256, "intermediate": 512, "layers": 2}
GATE, EMBEDDING, SIGNS, ROTATED = (
    "blk.0.ffn_gate.weight",
    "token_embd.weight",
    "rotation.signs",
    "bitqwen.rotated",
)
TEXT = "def add(first, second):\n    return first + second\n\n" * 400


def calibration(recipe="fit+rotate+gptq", **options):
    return Calibration(text=TEXT, tokens=512, chunk=64, recipe=recipe, **options)


def mixed(source, tensor_type=TensorType.V3):
    """Plans of a vector type for most matrices, Q4_K for values; others as in the scheme."""
    plans = {}
    for name in open_checkpoint(source.folder).names():
        if name.endswith("proj.weight") or "embed" in name or "lm_head" in name:
            plans[name] = TensorPlan(tensor_type, "lloyd" if tensor_type > 100 else "mse")
        if name.endswith("v_proj.weight"):
            plans[name] = TensorPlan(TensorType.Q4_K, "mse")
    return plans


def importance_matrix(source, folder, recipe="fit+rotate"):
    """A calibration by what a text's inputs are, column by column."""
    found = folder / "imatrix.gguf"
    convert(
        source.folder, folder / "unused.gguf", "q8_0", calibration=calibration("fit", save_importance=found)
    )
    return Calibration(importance=found, recipe=recipe)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def rotated(request, tiny_checkpoint, tmp_path_factory):
    source = tiny_checkpoint(**SMALL, tied=request.param)
    path = tmp_path_factory.mktemp("rotated") / "out.gguf"
    report = convert(source.folder, path, plans=mixed(source), calibration=calibration())
    return SimpleNamespace(source=source, path=path, report=report, tied=request.param)


def in_float(path, target):
    """The same file, every weight as float32 in its own columns."""
    file, checkpoint = GGUFFile(path), open_checkpoint(path)
    with GGUFWriter(target) as writer:
        for key in file.metadata:
            if key != ROTATED:
                writer.add_value(key, file.metadata[key], file.metadata.value_type(key))
        names = {name: checkpoint.hf_name(name) for name in file.tensors if checkpoint.hf_name(name)}
        for name in names:
            writer.add_tensor(name, file.tensors[name].shape, TensorType.F32)
        writer.begin()
        for name, own in names.items():
            writer.write(name, checkpoint.read(own))
        writer.finish()
    return target


def test_quantised_matrices_are_named_beside_their_signs(rotated):
    file = GGUFFile(rotated.path)
    names = set(file.metadata[ROTATED])
    assert len(names) == 2 * 7 + 1
    assert (EMBEDDING in names) == rotated.tied  # else it is looked up, and the head is calibrated
    assert {GATE, "blk.1.attn_v.weight"} < names
    signs = file.raw(SIGNS).view(np.int8)
    assert signs.shape == (512,)
    assert set(signs.tolist()) == {1, -1}
    assert rotated.report.nbytes == rotated.path.stat().st_size


def test_inspect_tells_which_they_are(rotated):
    shown = {tensor.name for tensor in inspect_path(rotated.path).tensors if tensor.rotated}
    assert shown == set(GGUFFile(rotated.path).metadata[ROTATED])


def test_a_matrix_is_read_in_its_own_columns(rotated):
    file = GGUFFile(rotated.path)
    wanted = rotated.source.weights["model.layers.0.mlp.gate_proj.weight"]
    found = file.read(GATE)
    assert np.square(found - wanted).sum() < 0.1 * np.square(wanted).sum()
    np.testing.assert_array_equal(file.read(GATE, 3, 5), found[3:5])


def test_logits_are_those_of_the_dequantised_weights(rotated, tmp_path):
    reference = in_float(rotated.path, tmp_path / "float.gguf")
    ids = list(range(5, 45))
    ours = Model.open(rotated.path, context=64).logits(ids)
    theirs = Model.open(reference, context=64).logits(ids)
    difference = np.square(ours - theirs).sum() / np.square(theirs - theirs.mean(axis=1, keepdims=True)).sum()
    assert 0 < difference < 1e-3


@pytest.mark.parametrize("threads", [1, 3])
def test_prefill_and_decode_give_the_same_bits(rotated, threads):
    model = Model.open(rotated.path, context=64, threads=threads)
    ids = list(range(30, 50))
    whole = model.logits(ids)
    session = model.session()
    for position, token in enumerate(ids):
        np.testing.assert_array_equal(session.feed([token]).reshape(-1), whole[position])


def test_such_a_file_is_a_source_too(rotated, tmp_path):
    convert(rotated.path, tmp_path / "again.gguf", "f16")
    again = GGUFFile(tmp_path / "again.gguf")
    assert SIGNS not in again.tensors
    assert ROTATED not in again.metadata
    expected = GGUFFile(rotated.path).read(GATE).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(again.read(GATE), expected)


def test_what_is_distilled_stays_rotated(rotated, tmp_path):
    path = tmp_path / "distilled.gguf"
    convert(
        rotated.source.folder,
        path,
        plans=mixed(rotated.source),
        calibration=calibration("fit+rotate+gptq+distil"),
    )
    file, before = GGUFFile(path), GGUFFile(rotated.path)
    assert file.metadata[ROTATED] == before.metadata[ROTATED]
    reference = Model.open(in_float(path, tmp_path / "float.gguf"), context=64)
    ids = list(range(5, 45))
    np.testing.assert_allclose(
        Model.open(path, context=64).logits(ids),
        reference.logits(ids),
        atol=0.05 * np.abs(reference.logits(ids)).max(),
    )
    assert np.any(file.read("blk.0.ffn_norm.weight") != before.read("blk.0.ffn_norm.weight"))


def test_an_interrupted_conversion_goes_on_to_the_same_bytes(rotated, tmp_path):
    path = tmp_path / "out.gguf"
    stopped = []

    def stop(progress):
        stopped.append(progress.tensor)
        if progress.tensor.startswith("blk.1."):
            raise KeyboardInterrupt

    options = {"plans": mixed(rotated.source), "calibration": calibration(resume=True)}
    with pytest.raises(KeyboardInterrupt):
        convert(rotated.source.folder, path, progress=stop, **options)
    convert(rotated.source.folder, path, **options)
    assert path.read_bytes() == rotated.path.read_bytes()


@pytest.mark.parametrize("known", ["nothing", "importance"])
def test_files_that_no_text_was_used_for_are_rotated_too(tiny_checkpoint, tmp_path, known):
    source = tiny_checkpoint(**SMALL)
    path, plans = tmp_path / "out.gguf", mixed(source)
    chosen = None if known == "nothing" else importance_matrix(source, tmp_path)
    convert(source.folder, path, plans=plans, calibration=chosen)
    file, checkpoint = GGUFFile(path), open_checkpoint(path)
    assert len(file.metadata[ROTATED]) == 2 * 7 + 1
    if chosen:
        assert json.loads(file.metadata["bitqwen.settings"])["recipe"] == "fit+rotate"
    for name, wanted in source.weights.items():
        if name in plans:
            found = checkpoint.read(name)
            assert np.square(found - wanted).sum() < 0.05 * np.square(wanted).sum(), name
    ids = list(range(5, 45))
    ours = Model.open(path, context=64).logits(ids)
    theirs = Model.open(in_float(path, tmp_path / "float.gguf"), context=64).logits(ids)
    assert np.square(ours - theirs).sum() < 1e-3 * np.square(theirs).sum()


def test_an_importance_matrix_fits_without_turning_too(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    path, chosen = tmp_path / "out.gguf", importance_matrix(source, tmp_path, "fit")
    convert(source.folder, path, plans=mixed(source), calibration=chosen)
    assert ROTATED not in GGUFFile(path).metadata


def test_files_that_other_programs_read_are_not_rotated(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    path = tmp_path / "out.gguf"
    convert(source.folder, path, plans=mixed(source, TensorType.Q4_K), calibration=calibration())
    file = GGUFFile(path)
    assert ROTATED not in file.metadata
    assert SIGNS not in file.tensors
    convert(
        source.folder,
        tmp_path / "plain.gguf",
        plans=mixed(source, TensorType.Q4_K),
        calibration=calibration("fit+gptq"),
    )
    assert np.array_equal(file.raw(GATE), GGUFFile(tmp_path / "plain.gguf").raw(GATE))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["blk.9.ffn_gate.weight"], "no tensor 'blk.9.ffn_gate.weight'"),
        (["output_norm.weight"], "no matrix"),
        (["blk.0.ffn_gate.codebook"], "rows of 2 values"),
        ("blk.0.ffn_gate.weight", "array of string"),
        ([1, 2], "array of string"),
    ],
)
def test_names_that_cannot_be_are_refused(rotated, tmp_path, names, message):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(rotated.path.read_bytes())
    add_metadata(path, {ROTATED: names})
    with pytest.raises(ModelFileError, match=message):
        GGUFFile(path)


def test_signs_that_are_none_are_refused(rotated, tmp_path):
    path = tmp_path / "damaged.gguf"

    def zero(file, name):
        return np.zeros(512, np.int8) if name == SIGNS else None

    rewrite(GGUFFile(rotated.path), path, changed=zero)
    with pytest.raises(ModelFileError, match=r"rotation.signs.* holds 0; 1 and -1 are allowed"):
        GGUFFile(path)


def test_llama_cpp_refuses_what_it_would_run_without_turning_inputs(tiny_checkpoint, tmp_path):
    """Its loader wants every tensor used, and does not know the signs."""
    llama_cpp = pytest.importorskip("llama_cpp")
    source = tiny_checkpoint(**SMALL)
    plain, rotated = tmp_path / "plain.gguf", tmp_path / "rotated.gguf"
    convert(source.folder, plain, plans=mixed(source, TensorType.Q4_K))
    llama_cpp.Llama(str(plain), n_ctx=32, verbose=False).close()
    file = GGUFFile(plain)
    with GGUFWriter(rotated) as writer:
        for key in file.metadata:
            writer.add_value(key, file.metadata[key], file.metadata.value_type(key))
        writer.add_metadata({ROTATED: [GATE]})
        for name, info in file.tensors.items():
            writer.add_tensor(name, info.shape, info.type)
        writer.add_tensor(SIGNS, (512,), TensorType.I8)
        writer.begin()
        for name in file.tensors:
            writer.write(name, file.raw(name))
        writer.write(SIGNS, np.ones(512, np.int8))
        writer.finish()
    Model.open(rotated, context=32)
    with pytest.raises(ValueError, match="Failed to load"):
        llama_cpp.Llama(str(rotated), n_ctx=32, verbose=False)
