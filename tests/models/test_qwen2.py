from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitqwen.errors import BitqwenError, CheckpointError, UnsupportedModelError
from bitqwen.models.qwen2 import Qwen2Config, YarnScaling
from bitqwen.models.registry import config_from_gguf, config_from_hf
from helpers.tiny_checkpoint import TinyCheckpoint, TinyModel

# hidden, ffn, layers, heads, kv heads, tied, vocabulary: Qwen2.5's published configurations.
QWEN25 = {
    "0.5B": (896, 4864, 24, 14, 2, True, 151936),
    "1.5B": (1536, 8960, 28, 12, 2, True, 151936),
    "3B": (2048, 11008, 36, 16, 2, True, 151936),
    "7B": (3584, 18944, 28, 28, 4, False, 152064),
    "14B": (5120, 13824, 48, 40, 8, False, 152064),
    "32B": (5120, 27648, 64, 40, 8, False, 152064),
    "72B": (8192, 29568, 80, 64, 8, False, 152064),
}
# Parameters that the models' cards state, in billions: with and without embeddings.
STATED = {"0.5B": 0.49, "1.5B": 1.54, "3B": 3.09, "7B": 7.61, "14B": 14.7, "32B": 32.5, "72B": 72.7}


def config_json(**changes: Any) -> dict[str, Any]:
    return TinyModel().config_json() | changes


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in config_json().items() if name != key}


def gguf_metadata(**changes: Any) -> dict[str, Any]:
    config = Qwen2Config.from_hf(config_json())
    metadata = {"general.architecture": "qwen2"} | config.to_gguf_metadata()
    return metadata | {key.replace("__", "."): value for key, value in changes.items()}


def gguf_tensors(config: Qwen2Config) -> dict[str, Any]:
    return {
        spec.gguf_name: SimpleNamespace(shape=spec.shape) for spec in config.tensors() if not spec.optional
    }


class TestPublishedSizes:
    @pytest.mark.parametrize("size", QWEN25)
    def test_parameters_add_up_to_what_the_model_card_states(self, size: str) -> None:
        hidden, width, layers, heads, kv_heads, tied, vocabulary = QWEN25[size]
        config = Qwen2Config.from_hf(
            config_json(
                hidden_size=hidden,
                intermediate_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                tie_word_embeddings=tied,
                vocab_size=vocabulary,
            )
        )
        assert config.head_dim == (64 if size == "0.5B" else 128)
        total = 0
        for spec in config.tensors():
            count = 1
            for extent in spec.shape:
                count *= extent
            total += 0 if spec.optional else count
        assert total / 1e9 == pytest.approx(STATED[size], rel=0.01)


class TestFromHuggingFace:
    @pytest.mark.parametrize("options", [{}, {"tied": False, "head_dim": 32}, {"yarn": 4.0}])
    @pytest.mark.parametrize("spelling", ["old", "new"])
    def test_every_field_is_what_transformers_reads(
        self, tiny_checkpoint: Callable[..., TinyCheckpoint], options: dict[str, Any], spelling: str
    ) -> None:
        transformers = pytest.importorskip("transformers")
        tiny = tiny_checkpoint(**options, rope_spelling=spelling, rope_theta=123456.0)
        theirs = transformers.AutoConfig.from_pretrained(tiny.folder)
        ours = config_from_hf(json.loads((tiny.folder / "config.json").read_text()))
        assert (ours.hidden_size, ours.intermediate_size) == (theirs.hidden_size, theirs.intermediate_size)
        assert (ours.heads, ours.kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
        assert (ours.layers, ours.vocab_size) == (theirs.num_hidden_layers, theirs.vocab_size)
        assert ours.rms_norm_eps == theirs.rms_norm_eps
        assert ours.context_length == theirs.max_position_embeddings
        assert ours.tied == theirs.tie_word_embeddings
        assert ours.rope_theta == 123456.0
        model = transformers.AutoModelForCausalLM.from_config(theirs)
        assert model.model.layers[0].self_attn.head_dim == ours.head_dim
        stored = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        ours.validate(stored, source="transformers' state dict")
        assert ours.rope_scaling == (YarnScaling(4.0, 512) if options.get("yarn") else None)
        assert ours.max_context == (2048 if options.get("yarn") else 512)

    def test_what_transformers_writes_is_read_back(
        self, tiny_checkpoint: Callable[..., TinyCheckpoint], tmp_path: Path
    ) -> None:
        transformers = pytest.importorskip("transformers")
        tiny = tiny_checkpoint(yarn=2.0, tied=False)
        theirs = transformers.AutoConfig.from_pretrained(tiny.folder)
        theirs.save_pretrained(tmp_path)
        before = config_from_hf(json.loads((tiny.folder / "config.json").read_text()))
        assert config_from_hf(json.loads((tmp_path / "config.json").read_text())) == before

    def test_its_own_spelling_is_read_back(self) -> None:
        for model in (TinyModel(), TinyModel(yarn=4.0, tied=False), TinyModel(head_dim=32)):
            config = config_from_hf(model.config_json())
            assert config_from_hf(config.to_hf()) == config

    def test_yarn_without_an_original_context_stretches_the_whole_one(self) -> None:
        config = Qwen2Config.from_hf(config_json(rope_scaling={"type": "yarn", "factor": 4}))
        assert config.rope_scaling == YarnScaling(4.0, 512)

    @pytest.mark.parametrize(
        "key",
        [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
        ],
    )
    def test_a_missing_number_is_named(self, key: str) -> None:
        with pytest.raises(CheckpointError, match=f"{key} is missing"):
            Qwen2Config.from_hf(without(key), source="a/config.json")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("hidden_size", 0),
            ("hidden_size", -256),
            ("hidden_size", 1 << 40),
            ("hidden_size", "256"),
            ("hidden_size", 256.0),
            ("hidden_size", True),
            ("hidden_size", [256]),
            ("intermediate_size", 1 << 62),
            ("num_hidden_layers", 1 << 31),
            ("num_attention_heads", 0),
            ("num_key_value_heads", 0),
            ("vocab_size", 1 << 21),
            ("max_position_embeddings", 0),
            ("head_dim", 0),
            ("head_dim", 1 << 20),
            ("rms_norm_eps", float("nan")),
            ("rms_norm_eps", float("inf")),
            ("rms_norm_eps", "1e-6"),
            ("rope_theta", 0),
            ("rope_theta", float("nan")),
            ("tie_word_embeddings", "false"),
            ("rope_scaling", "yarn"),
            ("rope_scaling", [4]),
            ("rope_parameters", 7),
        ],
    )
    def test_an_impossible_value_is_named_with_what_is_allowed(self, key: str, value: Any) -> None:
        with pytest.raises(CheckpointError, match=rf"{key} is .* is allowed") as caught:
            Qwen2Config.from_hf(config_json(**{key: value}))
        assert caught.value.hint

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_key_value_heads": 3}, "3 key/value heads do not divide 4 heads"),
            ({"num_attention_heads": 6}, "6 heads do not divide the hidden size 256"),
            ({"head_dim": 33}, "33 values wide"),
            ({"rope_scaling": {"type": "yarn"}}, "factor is missing"),
            ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, r"factor is 0\.5"),
            (
                {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": -1}},
                "original_max_position_embeddings is -1",
            ),
        ],
    )
    def test_numbers_that_do_not_fit_together_are_named(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            Qwen2Config.from_hf(config_json(**changes))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"use_sliding_window": True}, "use_sliding_window"),
            ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window"),
            ({"hidden_act": "gelu"}, "'gelu'.*'silu'"),
            ({"is_causal": False}, "is_causal"),
            ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
            ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'.*'yarn'"),
            ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3'.*'yarn'"),
            ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'.*'yarn'"),
            ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "by layer type"),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 64}}, "beta_fast 64"),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.5}}, "attention_factor"),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "truncate False"),
        ],
    )
    def test_what_is_not_run_is_refused_by_name(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(UnsupportedModelError, match=message):
            Qwen2Config.from_hf(config_json(**changes))

    @pytest.mark.parametrize(
        "changes",
        [
            {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28},
            {"layer_types": ["full_attention"] * 2},
            {"rope_scaling": None},
            {"rope_scaling": {"rope_type": "default"}},
            {"quantization_config": {"quant_method": "bitnet"}},
        ],
    )
    def test_settings_without_effect_are_accepted(self, changes: dict[str, Any]) -> None:
        assert Qwen2Config.from_hf(config_json(**changes)) == Qwen2Config.from_hf(config_json())

    @settings(deadline=None)
    @given(st.data())
    def test_no_configuration_makes_it_crash_or_plan_for_much(self, data: st.DataObject) -> None:
        json_values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
            ),
            max_leaves=5,
        )
        keys = [*config_json(), "head_dim", "rope_scaling", "rope_parameters", "layer_types"]
        changes = data.draw(st.dictionaries(st.sampled_from(keys), json_values, max_size=4))
        try:
            config = config_from_hf(config_json(**changes))
        except BitqwenError:
            return
        assert len(config.tensors()) <= 12 * 1024 + 3
        assert config.vocab_size <= 1 << 20


class TestGGUF:
    @pytest.mark.parametrize("options", [{}, {"yarn": 4.0}, {"head_dim": 32}, {"tied": False}])
    def test_metadata_and_tensors_give_the_same_configuration(self, options: dict[str, Any]) -> None:
        config = config_from_hf(TinyModel(**options).config_json())
        metadata = {"general.architecture": "qwen2"} | config.to_gguf_metadata()
        assert config_from_gguf(metadata, gguf_tensors(config)) == config

    def test_keys_are_those_of_the_gguf_package(self) -> None:
        gguf = pytest.importorskip("gguf")
        config = config_from_hf(TinyModel(yarn=4.0, head_dim=32).config_json())
        known = {
            value.replace("{arch}", "qwen2")
            for group in vars(gguf.Keys).values()
            if isinstance(group, type)
            for value in vars(group).values()
            if isinstance(value, str)
        }
        assert set(config.to_gguf_metadata()) <= known

    def test_tensor_names_are_those_of_the_gguf_package(self) -> None:
        gguf = pytest.importorskip("gguf")
        config = config_from_hf(TinyModel(tied=False, layers=3).config_json())
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.layers)
        for spec in config.tensors():
            assert names.get_name(spec.hf_name, (".weight", ".bias")) == spec.gguf_name

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("qwen2__embedding_length", None, "qwen2.embedding_length is missing"),
            ("qwen2__block_count", 1 << 31, "qwen2.block_count is 2147483648"),
            ("qwen2__attention__head_count", [4, 4], "qwen2.attention.head_count is"),
            ("qwen2__context_length", "512", "qwen2.context_length is '512'"),
            ("qwen2__attention__layer_norm_rms_epsilon", -1.0, "layer_norm_rms_epsilon is -1"),
        ],
    )
    def test_a_bad_value_is_named_as_the_file_spells_it(self, key: str, value: Any, message: str) -> None:
        config = Qwen2Config.from_hf(config_json())
        with pytest.raises(CheckpointError, match=message):
            config_from_gguf(gguf_metadata(**{key: value}), gguf_tensors(config))

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("qwen2__attention__causal", False, "qwen2.attention.causal"),
            ("qwen2__rope__scaling__type", "longrope", "'longrope'"),
        ],
    )
    def test_what_is_not_run_is_refused(self, key: str, value: Any, message: str) -> None:
        config = Qwen2Config.from_hf(config_json())
        with pytest.raises(UnsupportedModelError, match=message):
            config_from_gguf(gguf_metadata(**{key: value}), gguf_tensors(config))

    @pytest.mark.parametrize("shape", [(), (512,), (2, 512, 256)])
    def test_an_embedding_that_is_no_matrix_is_refused(self, shape: tuple[int, ...]) -> None:
        tensors = {"token_embd.weight": SimpleNamespace(shape=shape)}
        with pytest.raises(CheckpointError, match=r"token_embd\.weight"):
            config_from_gguf(gguf_metadata(), tensors)


class TestValidation:
    def shapes(self, **options: Any) -> dict[str, tuple[int, ...]]:
        return TinyModel(**options).shapes()

    def config(self, **options: Any) -> Qwen2Config:
        return Qwen2Config.from_hf(TinyModel(**options).config_json())

    def test_a_missing_an_extra_and_a_misshaped_tensor_are_all_named(self) -> None:
        shapes = self.shapes()
        del shapes["model.layers.1.self_attn.k_proj.bias"]
        shapes["model.layers.0.mlp.up_proj.weight"] = (512, 255)
        shapes["score.weight"] = (1, 256)
        with pytest.raises(CheckpointError) as caught:
            self.config().validate(shapes, source="here")
        message = str(caught.value)
        assert message.startswith("here does not fit")
        assert "model.layers.1.self_attn.k_proj.bias is missing (expected [128])" in message
        assert "model.layers.0.mlp.up_proj.weight has shape [512, 255] (expected [512, 256])" in message
        assert "score.weight is not part of this architecture" in message

    def test_a_long_list_is_cut_and_counted(self) -> None:
        with pytest.raises(CheckpointError, match="and 6 more"):
            self.config(layers=3).validate(self.shapes(layers=2) | {"x": (1,), "y": (1,)}, source="here")

    def test_an_untied_model_needs_its_head_and_a_tied_one_may_store_it(self) -> None:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight is missing"):
            self.config(tied=False).validate(self.shapes(tied=True), source="here")
        self.config(tied=True).validate(self.shapes(tied=True, stored_head=True), source="here")
        self.config(tied=True).validate(self.shapes(tied=True), source="here")

    def test_rotary_buffers_of_old_checkpoints_are_ignored(self) -> None:
        buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (32,) for i in range(2)}
        self.config().validate(self.shapes() | buffers, source="here")

    def test_gguf_names_are_used_for_a_gguf_file(self) -> None:
        config = self.config()
        shapes = {spec.gguf_name: spec.shape for spec in config.tensors()}
        config.validate_gguf(shapes, source="here")
        del shapes["blk.1.attn_q.bias"]
        with pytest.raises(CheckpointError, match=r"blk\.1\.attn_q\.bias is missing"):
            config.validate_gguf(shapes, source="here")


class TestRegistry:
    @pytest.mark.parametrize("model_type", ["llama", "qwen3", None, ["qwen2"], {"a": 1}])
    def test_another_architecture_is_refused_by_name_with_what_is_supported(self, model_type: Any) -> None:
        with pytest.raises(UnsupportedModelError, match=r"supported: qwen2") as caught:
            config_from_hf(config_json(model_type=model_type))
        assert repr(model_type) in str(caught.value)
        with pytest.raises(UnsupportedModelError, match="supported: qwen2"):
            config_from_gguf(gguf_metadata(general__architecture=model_type), {})
