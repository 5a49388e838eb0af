from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
from bitqwen.errors import CheckpointError, ModelFileError, UnsupportedModelError
from bitqwen.models.registry import config_from_hf
from helpers.gguf_file import write_gguf
from helpers.tiny_checkpoint import TinyCheckpoint
from helpers.tiny_tokenizer import CHAT_TEMPLATE

gguf = pytest.importorskip("gguf")
MakeTiny = Callable[..., TinyCheckpoint]
# What the gguf package can quantise, of the types that bitqwen reads.
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"]


class TestWeights:
    @pytest.mark.parametrize("matrices", TYPES)
    def test_values_are_those_that_the_gguf_package_gives(
        self, tiny_checkpoint: MakeTiny, tmp_path: Path, matrices: str
    ) -> None:
        tiny = tiny_checkpoint(tied=False)
        path = write_gguf(tmp_path / "x.gguf", tiny, matrices=matrices)
        checkpoint = GGUFCheckpoint(path)
        theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        assert set(checkpoint.names()) == set(tiny.weights)
        for spec in config_from_hf(checkpoint.config).tensors():
            tensor = theirs[spec.gguf_name]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(spec.shape)
            assert checkpoint.shape(spec.hf_name) == spec.shape
            assert checkpoint.dtype(spec.hf_name) == tensor.tensor_type.name
            read = checkpoint.read(spec.hf_name)
            assert read.dtype == np.float32
            np.testing.assert_array_equal(read, values)
            if len(spec.shape) == 2:
                np.testing.assert_array_equal(checkpoint.read(spec.hf_name, 5, 17), values[5:17])

    @pytest.mark.parametrize("options", [{}, {"yarn": 4.0, "tied": False}, {"head_dim": 32}])
    def test_the_configuration_is_that_of_the_folder(
        self, tiny_checkpoint: MakeTiny, tmp_path: Path, options: dict[str, Any]
    ) -> None:
        tiny = tiny_checkpoint(**options)
        ours = config_from_hf(GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", tiny)).config)
        theirs = config_from_hf(tiny.model.config_json())
        assert ours.rms_norm_eps == pytest.approx(theirs.rms_norm_eps, rel=1e-6)  # GGUF has it in float32
        assert ours.tensors() == theirs.tensors()
        assert ours.rope_scaling == theirs.rope_scaling
        assert ours.tied == theirs.tied

    def test_tensors_stored_alike_are_told(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        tiny = tiny_checkpoint(tied=False)
        names = ("model.embed_tokens.weight", "lm_head.weight")
        assert not GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", tiny)).same_bytes(*names)
        tiny.weights["lm_head.weight"] = tiny.weights["model.embed_tokens.weight"]
        assert GGUFCheckpoint(write_gguf(tmp_path / "y.gguf", tiny)).same_bytes(*names)


class TestBelongings:
    def test_tokenizer_template_name_and_digest(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        tiny = tiny_checkpoint()
        path = write_gguf(tmp_path / "x.gguf", tiny)
        checkpoint = GGUFCheckpoint(path)
        folder = HuggingFaceCheckpoint(tiny.folder)
        assert checkpoint.tokenizer() == folder.tokenizer().padded(512)
        assert checkpoint.chat_template == CHAT_TEMPLATE
        assert checkpoint.name == "Tiny"
        assert checkpoint.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (checkpoint.provenance.kind, checkpoint.provenance.source) == ("gguf", "x.gguf")

    def test_generation_config(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        tiny = tiny_checkpoint()
        settings = {"general__sampling__temp": 0.5, "general__sampling__top_k": 7}
        checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", tiny, **settings))
        stops = list(HuggingFaceCheckpoint(tiny.folder).tokenizer().stop_ids)
        assert checkpoint.generation_config == {"temperature": 0.5, "top_k": 7, "eos_token_id": stops}

    def test_what_may_be_absent(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        without = ("general.name", "tokenizer.chat_template")
        checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "x.gguf", tiny_checkpoint(), without=without))
        assert checkpoint.name == "x"
        assert checkpoint.chat_template is None


class TestDamage:
    def test_a_missing_tensor_is_named(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny_checkpoint(), without=("blk.1.ffn_up.weight",))
        with pytest.raises(
            CheckpointError, match=r"blk\.1\.ffn_up\.weight is missing \(expected \[512, 256\]"
        ):
            GGUFCheckpoint(path)

    def test_tensors_beyond_the_metadata_are_named(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny_checkpoint(), qwen2__block_count=1)
        with pytest.raises(CheckpointError, match=r"blk\.1\.attn_norm\.weight is not part"):
            GGUFCheckpoint(path)

    def test_a_missing_hyperparameter_is_named(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny_checkpoint(), without=("qwen2.block_count",))
        with pytest.raises(CheckpointError, match=r"x\.gguf: qwen2\.block_count is missing"):
            GGUFCheckpoint(path)

    def test_another_architecture_is_refused(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny_checkpoint())
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"\x05\x00\x00\x00\x00\x00\x00\x00qwen2", b"\x05" + bytes(7) + b"qwen9", 1)
        )
        with pytest.raises(UnsupportedModelError, match=r"'qwen9'; supported: qwen2"):
            GGUFCheckpoint(path)

    def test_a_cut_file_is_refused(self, tiny_checkpoint: MakeTiny, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny_checkpoint())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ModelFileError):
            GGUFCheckpoint(path)


@pytest.mark.real
def test_real_values_are_those_that_the_gguf_package_gives(real_model: Path) -> None:
    checkpoint = GGUFCheckpoint(real_model)
    types = set()
    for name in [
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.27.self_attn.v_proj.weight",
        "model.layers.13.self_attn.q_proj.weight",
        "model.layers.5.self_attn.k_proj.bias",
        "model.norm.weight",
    ]:
        info = checkpoint.file.tensors[
            next(s.gguf_name for s in config_from_hf(checkpoint.config).tensors() if s.hf_name == name)
        ]
        types.add(checkpoint.dtype(name))
        kind = gguf.GGMLQuantizationType(int(info.type))
        raw = checkpoint.file.raw(info.name)
        values = gguf.quants.dequantize(raw.reshape(info.shape[0] if len(info.shape) == 2 else 1, -1), kind)
        np.testing.assert_array_equal(checkpoint.read(name), values.reshape(info.shape))
    assert types == {"F32", "Q4_K", "Q6_K"}
