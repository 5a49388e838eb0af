from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitqwen.checkpoints import Provenance, open_checkpoint
from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
from bitqwen.errors import CheckpointError, ModelFileError, UnsupportedModelError
from bitqwen.models.registry import config_from_hf
from helpers.tiny_checkpoint import TinyCheckpoint, write_safetensors
from helpers.tiny_tokenizer import CHAT_TEMPLATE

MakeTiny = Callable[..., TinyCheckpoint]


def edit_json(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    document.update(changes)
    path.write_text(json.dumps(document), encoding="utf-8")


class TestWeights:
    @pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("tied", [True, False])
    def test_tensors_are_what_transformers_loads(
        self, tiny_checkpoint: MakeTiny, dtype: str, shards: int, tied: bool
    ) -> None:
        transformers = pytest.importorskip("transformers")
        tiny = tiny_checkpoint(dtype=dtype, shards=shards, tied=tied)
        checkpoint = HuggingFaceCheckpoint(tiny.folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder, dtype="float32")
        theirs = {name: value.numpy() for name, value in model.state_dict().items()}
        if tied:
            assert "lm_head.weight" not in checkpoint.names()
            np.testing.assert_array_equal(theirs.pop("lm_head.weight"), theirs["model.embed_tokens.weight"])
        assert set(checkpoint.names()) == set(theirs)
        for name, array in theirs.items():
            assert checkpoint.dtype(name) == dtype
            assert checkpoint.shape(name) == array.shape
            np.testing.assert_array_equal(checkpoint.read(name), array)
        config_from_hf(checkpoint.config).validate(checkpoint.shapes(), source="here")

    @pytest.mark.parametrize("shards", ["1MB", "1GB"])
    def test_what_transformers_saves_is_read(
        self, tiny_checkpoint: MakeTiny, tmp_path: Path, shards: str
    ) -> None:
        transformers = pytest.importorskip("transformers")
        tiny = tiny_checkpoint(tied=False)
        model = transformers.AutoModelForCausalLM.from_pretrained(tiny.folder, dtype="bfloat16")
        model.save_pretrained(tmp_path, max_shard_size=shards)
        assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "1MB")
        checkpoint = HuggingFaceCheckpoint(tmp_path)
        assert set(checkpoint.names()) == set(tiny.weights)
        for name, array in tiny.weights.items():
            assert checkpoint.dtype(name) == "BF16"
            np.testing.assert_array_equal(checkpoint.read(name), array)
        assert config_from_hf(checkpoint.config) == config_from_hf(tiny.model.config_json())

    def test_rows_of_a_sharded_tensor(self, tiny_checkpoint: MakeTiny) -> None:
        tiny = tiny_checkpoint(shards=4)
        checkpoint = HuggingFaceCheckpoint(tiny.folder)
        name = "model.layers.1.mlp.down_proj.weight"
        np.testing.assert_array_equal(checkpoint.read(name, 10, 20), tiny.weights[name][10:20])

    def test_one_file_wins_over_an_index_as_in_transformers(self, tiny_checkpoint: MakeTiny) -> None:
        tiny, other = tiny_checkpoint(shards=2, seed=1), tiny_checkpoint(seed=2)
        shutil.copy(other.folder / "model.safetensors", tiny.folder)
        read = HuggingFaceCheckpoint(tiny.folder).read("model.norm.weight")
        np.testing.assert_array_equal(read, other.weights["model.norm.weight"])

    def test_the_digest_is_that_of_all_shards(self, tiny_checkpoint: MakeTiny) -> None:
        tiny = tiny_checkpoint(shards=2)
        before = HuggingFaceCheckpoint(tiny.folder).sha256()
        assert HuggingFaceCheckpoint(tiny_checkpoint(shards=2).folder).sha256() == before
        shard = tiny.folder / "model-00002-of-00002.safetensors"
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
        assert HuggingFaceCheckpoint(tiny.folder).sha256() != before


class TestShardsAndIndex:
    INDEX = "model.safetensors.index.json"

    def test_a_missing_shard_is_named(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint(shards=3).folder
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(ModelFileError, match=r"1 of 3 shards are missing: model-00002-of-00003"):
            HuggingFaceCheckpoint(folder)

    def test_a_tensor_that_its_shard_lacks_is_named(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint(shards=2).folder
        weight_map = json.loads((folder / self.INDEX).read_text())["weight_map"]
        weight_map["model.layers.9.mlp.up_proj.weight"] = "model-00001-of-00002.safetensors"
        edit_json(folder / self.INDEX, weight_map=weight_map)
        with pytest.raises(CheckpointError, match=r"model\.layers\.9\.mlp\.up_proj\.weight.*model-00001"):
            HuggingFaceCheckpoint(folder)

    def test_a_tensor_in_the_other_shard_is_named(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint(shards=2).folder
        weight_map = json.loads((folder / self.INDEX).read_text())["weight_map"]
        weight_map["model.norm.weight"] = "model-00001-of-00002.safetensors"
        edit_json(folder / self.INDEX, weight_map=weight_map)
        with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
            HuggingFaceCheckpoint(folder)

    def test_a_tensor_in_two_shards_is_named(self, tiny_checkpoint: MakeTiny) -> None:
        tiny = tiny_checkpoint(shards=2)
        names = list(tiny.weights)
        second = {name: tiny.weights[name] for name in names[len(names) // 2 :] + names[:1]}
        write_safetensors(tiny.folder / "model-00002-of-00002.safetensors", second, "BF16")
        with pytest.raises(CheckpointError, match=rf"'{names[0]}' is in two shards"):
            HuggingFaceCheckpoint(tiny.folder)

    @pytest.mark.parametrize(
        "shard", ["../model.safetensors", "/etc/passwd", "..", "sub/x.safetensors", "x.bin", 7, None, ""]
    )
    def test_an_index_cannot_point_elsewhere(self, tiny_checkpoint: MakeTiny, shard: Any) -> None:
        folder = tiny_checkpoint(shards=2).folder
        edit_json(folder / self.INDEX, weight_map={"model.norm.weight": shard})
        with pytest.raises(ModelFileError, match=r"'model\.norm\.weight' is said to be in"):
            HuggingFaceCheckpoint(folder)

    @pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
    def test_an_index_without_a_map_is_refused(self, tiny_checkpoint: MakeTiny, weight_map: Any) -> None:
        folder = tiny_checkpoint(shards=2).folder
        edit_json(folder / self.INDEX, weight_map=weight_map)
        with pytest.raises(ModelFileError, match="has no weight_map"):
            HuggingFaceCheckpoint(folder)


class TestWhatIsNoCheckpoint:
    def test_pickled_weights_are_refused_and_never_loaded(
        self, tiny_checkpoint: MakeTiny, tmp_path: Path
    ) -> None:
        folder = tiny_checkpoint().folder
        (folder / "model.safetensors").unlink()
        mark = tmp_path / "ran"
        # What a pickle can do: this one would write a file as soon as it is loaded.
        (folder / "pytorch_model.bin").write_bytes(
            b"cbuiltins\nexec\n(Vopen(" + repr(str(mark)).encode() + b", 'w')\ntR."
        )
        with pytest.raises(UnsupportedModelError, match=r"pickled weights \(pytorch_model\.bin\)") as caught:
            HuggingFaceCheckpoint(folder)
        assert "save_pretrained" in caught.value.hint
        assert not mark.exists()

    def test_pickled_weights_beside_safetensors_do_not_matter(self, tiny_checkpoint: MakeTiny) -> None:
        tiny = tiny_checkpoint()
        (tiny.folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        assert set(HuggingFaceCheckpoint(tiny.folder).names()) == set(tiny.weights)

    def test_a_folder_without_weights_is_told_what_is_needed(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        (folder / "model.safetensors").unlink()
        (folder / "training_args.bin").write_bytes(b"")
        with pytest.raises(ModelFileError, match=r"neither model\.safetensors nor model\.safetensors\.index"):
            HuggingFaceCheckpoint(folder)

    def test_a_folder_of_a_gguf_file_names_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        with pytest.raises(ModelFileError, match=r"no config\.json") as caught:
            HuggingFaceCheckpoint(tmp_path)
        assert str(tmp_path / "x.gguf") in caught.value.hint

    def test_an_adapter_is_recognised(self, tmp_path: Path) -> None:
        (tmp_path / "adapter_config.json").write_text("{}")
        with pytest.raises(ModelFileError) as caught:
            HuggingFaceCheckpoint(tmp_path)
        assert "LoRA" in caught.value.hint

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"{", "is not JSON"),
            (b"[]", "not a JSON object"),
            (b"\xff\xfe", "not UTF-8"),
            (b"[" * 100_000, "is not JSON"),
        ],
    )
    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
    def test_damaged_json_is_named(
        self, tiny_checkpoint: MakeTiny, name: str, content: bytes, message: str
    ) -> None:
        folder = tiny_checkpoint().folder
        (folder / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=message) as caught:
            HuggingFaceCheckpoint(folder).tokenizer()
        assert name in str(caught.value)

    def test_a_file_that_is_too_large_is_not_read(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        with (folder / "tokenizer.json").open("wb") as file:
            file.truncate(1 << 40)  # sparse
        with pytest.raises(ModelFileError, match=r"tokenizer\.json has 1099511627776 bytes"):
            HuggingFaceCheckpoint(folder).tokenizer()

    def test_a_dangling_link_is_an_error(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors").symlink_to(folder / "gone")
        with pytest.raises(ModelFileError, match=r"model\.safetensors is missing or not a file"):
            HuggingFaceCheckpoint(folder)


class TestBelongings:
    def test_provenance_and_name(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        checkpoint = open_checkpoint(folder)
        assert checkpoint.provenance == Provenance(source=folder.name, kind="folder")
        assert checkpoint.name == folder.name
        hub = HuggingFaceCheckpoint(folder, Provenance("Qwen/Qwen2.5-7B", "hub", revision="abc"))
        assert hub.name == "Qwen2.5-7B"

    def test_generation_config(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        assert HuggingFaceCheckpoint(folder).generation_config["top_k"] == 20
        (folder / "generation_config.json").unlink()
        assert HuggingFaceCheckpoint(folder).generation_config == {}

    def test_chat_template_from_each_of_its_places(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder

        def template() -> str | None:
            return HuggingFaceCheckpoint(folder).chat_template

        assert template() == CHAT_TEMPLATE
        named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
        edit_json(folder / "tokenizer_config.json", chat_template=named)
        assert template() == "plain"
        (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
        assert template() == "from json"
        (folder / "chat_template.jinja").write_text("from jinja")
        assert template() == "from jinja"

    def test_no_chat_template(self, tiny_checkpoint: MakeTiny) -> None:
        folder = tiny_checkpoint().folder
        edit_json(folder / "tokenizer_config.json", chat_template=None)
        assert HuggingFaceCheckpoint(folder).chat_template is None
        (folder / "tokenizer_config.json").unlink()
        assert HuggingFaceCheckpoint(folder).chat_template is None
