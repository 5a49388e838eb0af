from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gguf
from bitqwen.convert import convert
from bitqwen.errors import CheckpointError, ResourceError, UsageError
from bitqwen.gguf import GGUFFile, writer
from bitqwen.quant import names

SMALL = {"hidden": 256, "intermediate": 512, "layers": 2}


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def gguf_name(hf_name: str) -> str:
    from bitqwen.models.qwen2 import Qwen2Config

    config = Qwen2Config(256, 512, 2, 4, 2, 64, 512, 1e-6, 1e6, None, 512, False)
    return {spec.hf_name: spec.gguf_name for spec in config.tensors()}[hf_name]


# The gguf package does not know Q2_0 yet; llama.cpp does: see test_same_greedy_tokens.py. Our own types are
# tested in test_codebook_files.py.
@pytest.mark.parametrize("scheme", [name for name in names() if name not in ("w2", "v2", "v2.5", "v3")])
@pytest.mark.parametrize("tied", [True, False])
def test_every_scheme_writes_a_file_that_the_gguf_package_reads(tiny_checkpoint, tmp_path, scheme, tied):
    source = tiny_checkpoint(**SMALL, tied=tied)
    report = convert(source.folder, tmp_path / "out.gguf", scheme, force=True)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    written = {tensor.name: tensor for tensor in reader.tensors}
    assert set(written) == {gguf_name(name) for name in source.weights}
    for name, values in source.weights.items():
        tensor = written[gguf_name(name)]
        assert tuple(reversed(tensor.shape.tolist())) == values.shape
        if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
            np.testing.assert_array_equal(tensor.data.reshape(values.shape), values)
    assert report.nbytes == (tmp_path / "out.gguf").stat().st_size
    assert report.bits_per_weight("matrix") == pytest.approx(
        8
        * sum(
            t.n_bytes
            for n, t in written.items()
            if n.endswith("weight") and "norm" not in n and n[:3] == "blk"
        )
        / sum(
            t.n_elements
            for n, t in written.items()
            if n.endswith("weight") and "norm" not in n and n[:3] == "blk"
        )
    )
    assert left_over(tmp_path) == ["out.gguf"]


def test_f16_keeps_what_f16_can_hold(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL, dtype="F16")
    convert(source.folder, tmp_path / "out.gguf", "f16")
    file = GGUFFile(tmp_path / "out.gguf")
    for name, values in source.weights.items():
        np.testing.assert_array_equal(file.read(gguf_name(name)), values)


def test_metadata_is_complete(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL, yarn=4.0)
    convert(source.folder, tmp_path / "out.gguf", "w2")
    metadata = GGUFFile(tmp_path / "out.gguf").metadata
    assert metadata["general.architecture"] == "qwen2"
    assert metadata["general.file_type"] > 0
    assert metadata["qwen2.rope.scaling.type"] == "yarn"
    assert metadata["qwen2.rope.scaling.factor"] == 4.0
    assert metadata["qwen2.rope.scaling.original_context_length"] == 512
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    tokens = metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == len(metadata["tokenizer.ggml.token_type"]) == 512
    ends = {tokens[metadata["tokenizer.ggml.eos_token_id"]], tokens[metadata["tokenizer.ggml.eot_token_id"]]}
    assert ends == {"<|im_end|>", "<|endoftext|>"}
    assert "<|im_start|>" in metadata["tokenizer.chat_template"]
    assert metadata["bitqwen.scheme"] == "w2"
    assert metadata["bitqwen.version"]
    assert metadata["bitqwen.source"] == source.folder.name
    digest = hashlib.sha256((source.folder / "model.safetensors").read_bytes()).hexdigest()
    assert (
        metadata["bitqwen.source_sha256"]
        == hashlib.sha256(f"{digest}  model.safetensors\n".encode()).hexdigest()
    )
    # What generation_config.json recommends.
    assert metadata["general.sampling.temp"] == pytest.approx(0.7)
    assert metadata["general.sampling.top_k"] == 20
    assert metadata["general.sampling.top_p"] == pytest.approx(0.8)
    assert metadata["general.sampling.penalty_repeat"] == pytest.approx(1.1)


def test_the_same_source_gives_the_same_bytes(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    for name, threads in [("a", 1), ("b", 2)]:
        convert(source.folder, tmp_path / name, "w4", threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_large_tensors_in_pieces_equal_whole_ones(tiny_checkpoint, tmp_path, monkeypatch):
    source = tiny_checkpoint(**SMALL)
    convert(source.folder, tmp_path / "whole", "w4")
    monkeypatch.setattr("bitqwen.convert.pipeline._PIECE_VALUES", 7 * 256)
    convert(source.folder, tmp_path / "pieces", "w4")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_a_gguf_source_is_requantised_and_said_so(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    convert(source.folder, tmp_path / "w4.gguf", "w4")
    report = convert(tmp_path / "w4.gguf", tmp_path / "w2.gguf", "w2")
    assert any("requantising from Q4_K" in warning for warning in report.warnings)
    assert {t.source_type for t in report.tensors if t.role == "matrix"} == {"Q4_K"}
    assert GGUFFile(tmp_path / "w2.gguf").metadata["tokenizer.ggml.tokens"]


def test_a_tied_matrix_stored_twice_is_written_once_from_its_wider_copy(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL, tied=False)
    embedding = source.weights["model.embed_tokens.weight"]
    file = GGUFFile(convert(source.folder, tmp_path / "f16.gguf", "f16").path)
    twice = tmp_path / "twice.gguf"
    with writer.GGUFWriter(twice) as out:
        out.add_metadata({k: file.metadata[k] for k in file.metadata})
        data = {}
        for name, tensor in file.tensors.items():
            kind = gguf.GGMLQuantizationType(tensor.type)
            if name in ("token_embd.weight", "output.weight"):
                kind = (
                    gguf.GGMLQuantizationType.Q8_0
                    if name == "output.weight"
                    else gguf.GGMLQuantizationType.Q4_0
                )
                data[name] = gguf.quants.quantize(embedding, kind)
            else:
                data[name] = file.raw(name)
            out.add_tensor(name, tensor.shape, int(kind))
        out.begin()
        for name, values in data.items():
            out.write(name, np.ascontiguousarray(values))
        out.finish()
    report = convert(twice, tmp_path / "once.gguf", "q8_0")
    once = GGUFFile(tmp_path / "once.gguf")
    assert "output.weight" not in once.tensors
    assert next(t for t in report.tensors if t.role == "embedding").source_type == "Q8_0"
    np.testing.assert_allclose(once.read("token_embd.weight"), embedding, atol=0.02 * np.abs(embedding).max())


def test_an_untied_head_is_kept(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL, tied=False)
    convert(source.folder, tmp_path / "out.gguf", "q8_0")
    assert "output.weight" in GGUFFile(tmp_path / "out.gguf").tensors


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_storage_gives_the_same_values(tiny_checkpoint, tmp_path, dtype, shards):
    source = tiny_checkpoint(**SMALL, dtype=dtype, shards=shards)
    convert(source.folder, tmp_path / "out.gguf", "q8_0")
    name = "model.layers.1.mlp.down_proj.weight"
    expected = gguf.quants.quantize(source.weights[name], gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(GGUFFile(tmp_path / "out.gguf").raw(gguf_name(name)), expected.reshape(-1))


def test_bitnet_needs_force_and_says_why(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    with pytest.raises(UsageError, match="gibberish") as caught:
        convert(source.folder, tmp_path / "out.gguf", "bitnet")
    assert "--force" in caught.value.hint
    assert left_over(tmp_path) == []
    report = convert(source.folder, tmp_path / "out.gguf", "bitnet", force=True)
    assert any("gibberish" in warning for warning in report.warnings)


def test_a_weight_that_is_not_a_number_is_named(tiny_checkpoint, tmp_path):
    from helpers.tiny_checkpoint import write_safetensors

    source = tiny_checkpoint(**SMALL, dtype="F32")
    name = "model.layers.1.self_attn.o_proj.weight"
    weights = dict(source.weights)
    weights[name] = weights[name].copy()
    weights[name][3, 5] = np.nan
    write_safetensors(source.folder / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.") + r".*nan at \[3, 5\]"):
        convert(source.folder, tmp_path / "out.gguf", "w4")
    assert left_over(tmp_path) == []


def test_a_weight_that_the_type_cannot_hold_is_refused_by_name(tiny_checkpoint, tmp_path):
    from helpers.tiny_checkpoint import write_safetensors

    source = tiny_checkpoint(**SMALL, dtype="F32")
    weights = dict(source.weights)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][7, 9] = 70000
    write_safetensors(source.folder / "model.safetensors", weights, "F32")
    with pytest.raises(CheckpointError, match=r"embed_tokens.*7e\+04, beyond what F16 can hold"):
        convert(source.folder, tmp_path / "out.gguf", "f16")
    assert left_over(tmp_path) == []
    convert(source.folder, tmp_path / "out.gguf", "f16", embedding="bf16")
    assert GGUFFile(tmp_path / "out.gguf").read("token_embd.weight")[7, 9] == pytest.approx(70000, rel=0.01)


def test_a_disk_without_space_is_refused_before_anything_is_written(tiny_checkpoint, tmp_path, monkeypatch):
    source = tiny_checkpoint(**SMALL)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match="free"):
        convert(source.folder, tmp_path / "out.gguf", "w4")
    assert left_over(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    program = (
        "import resource, sys\n"
        "from bitqwen.convert import convert\n"
        "from bitqwen.errors import ResourceError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"  # writes fail from there on
        "try:\n    convert(sys.argv[1], sys.argv[2], 'f16')\n"
        "except ResourceError as error:\n    print('refused:', error.message)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(source.folder), str(tmp_path / "out.gguf")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(f"refused: cannot write {tmp_path / 'out.gguf'}")
    assert left_over(tmp_path) == []


def test_an_error_in_the_middle_leaves_nothing(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)

    def progress(step):
        if step.tensor.startswith("blk.1."):
            assert any(name.endswith(".part") for name in left_over(tmp_path))
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match="Input/output error"):
        convert(source.folder, tmp_path / "out.gguf", "w4", progress=progress)
    assert left_over(tmp_path) == []


def test_an_older_file_stays_until_the_new_one_is_complete(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    target = tmp_path / "out.gguf"
    target.write_bytes(b"older")

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source.folder, target, "w4", progress=stop)
    assert target.read_bytes() == b"older"
    assert left_over(tmp_path) == ["out.gguf"]
    convert(source.folder, target, "w4")
    assert target.read_bytes()[:4] == b"GGUF"


_BY_LIBRARY = """
import sys; from bitqwen.convert import convert
convert(sys.argv[1], sys.argv[2], 'w4', progress=lambda p: print(p.tensor, flush=True))
"""
# The command tells no one of its tensors where stderr is no terminal.
_BY_COMMAND = """
import sys
from bitqwen.cli.app import main
from bitqwen.gguf import GGUFWriter
write_parts = GGUFWriter.write_parts
def noted(self, name, parts): print(name, flush=True); write_parts(self, name, parts)
GGUFWriter.write_parts = noted
sys.exit(main(["convert", sys.argv[1], "-o", sys.argv[2], "--scheme", "w4", "--no-receipt"]))
"""


@pytest.mark.parametrize(
    ("program", "number"),
    [(_BY_LIBRARY, signal.SIGINT), (_BY_COMMAND, signal.SIGINT), (_BY_COMMAND, signal.SIGTERM)],
)
def test_a_signal_in_the_middle_leaves_no_partial_file(tiny_checkpoint, tmp_path, program, number):
    source = tiny_checkpoint(hidden=512, intermediate=2048, layers=24)
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(source.folder), str(tmp_path / "out.gguf")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("blk.2."):
            break
    assert any(name.endswith(".part") for name in left_over(tmp_path))
    process.send_signal(number)
    _, said = process.communicate()
    assert "Traceback" not in said or program is _BY_LIBRARY
    assert process.returncode == -number or number == signal.SIGINT
    assert process.returncode != 0
    deadline = time.monotonic() + 10
    while left_over(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_over(tmp_path) == []


def test_the_source_itself_is_not_overwritten(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    convert(source.folder, tmp_path / "out.gguf", "w4")
    before = hashlib.sha256((tmp_path / "out.gguf").read_bytes()).digest()
    with pytest.raises(UsageError, match="the source itself"):
        convert(tmp_path / "out.gguf", tmp_path / "out.gguf", "w2")
    assert hashlib.sha256((tmp_path / "out.gguf").read_bytes()).digest() == before


def test_progress_counts_to_the_end(tiny_checkpoint, tmp_path):
    source = tiny_checkpoint(**SMALL)
    seen = []
    convert(source.folder, tmp_path / "out.gguf", "w4", progress=seen.append)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert seen[0].done == 0
    assert seen[-1].done == seen[-1].total == sum(4 * v.size for v in source.weights.values())
    finished = [p.finished.name for p in seen if p.finished]
    assert len(finished) == len(set(finished)) == len(source.weights)


def test_a_large_tensor_reports_its_pieces(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("bitqwen.convert.pipeline._PIECE_VALUES", 64 * 256)
    source = tiny_checkpoint(**SMALL)
    seen = []
    report = convert(source.folder, tmp_path / "out.gguf", "w4", progress=seen.append)
    done = [p.done for p in seen if p.tensor == "token_embd.weight"]
    assert done == [k * 4 * 64 * 256 for k in range(512 // 64)]
    assert report.peak_rss > 1 << 20
