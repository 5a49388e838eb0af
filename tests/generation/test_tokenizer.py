from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_corpus import CONTROL, USER_DEFINED, strings
from tokenizers import Tokenizer as Backend

from bitqwen.errors import ModelFileError, UnsupportedModelError, UsageError
from bitqwen.generation.tokenizer import Tokenizer


def test_ids_are_those_of_the_engine_it_was_built_from(tokenizer: Tokenizer, small_bpe: Backend) -> None:
    for text in strings(500, seed=2):
        expected = small_bpe.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, allow_special=True) == expected


def test_a_control_tokens_name_is_text_unless_asked_for(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>b<|im_start|>"
    plain = tokenizer.encode(text)
    assert not any(tokenizer.is_control(token) for token in plain)
    assert tokenizer.decode(plain) == text
    special = tokenizer.encode(text, allow_special=True)
    control = [token for token in special if tokenizer.is_control(token)]
    assert control == [tokenizer.control["<|im_end|>"], tokenizer.control["<|im_start|>"]]
    assert tokenizer.decode(special) == text
    assert tokenizer.decode(special, skip_special=True) == "ab"


def test_user_defined_tokens_are_always_found(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x<tool_call>y")
    assert len(ids) == 3
    assert tokenizer.token_bytes(ids[1]) == b"<tool_call>"


def test_text_is_brought_to_nfc(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("café")


def test_the_stop_ids_hold_the_end_of_turn_and_of_document(small_metadata: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_gguf(small_metadata)
    ends = {tokenizer.control["<|im_end|>"], tokenizer.control["<|endoftext|>"]}
    assert tokenizer.stop_ids == ends
    assert tokenizer.eos_id == tokenizer.control["<|im_end|>"]
    more = Tokenizer.from_gguf({**small_metadata, "tokenizer.ggml.eot_token_id": 5})
    assert more.stop_ids == ends | {5}


def test_padding_rows_are_no_tokens(tokenizer: Tokenizer, small_metadata: dict[str, Any]) -> None:
    tokens = small_metadata["tokenizer.ggml.tokens"]
    assert tokenizer.vocab_size == len(tokens) - 2
    assert tokenizer.decode([len(tokens) - 1, 10**9, -1]) == ""
    assert tokenizer.unused_ids == ()
    types = list(small_metadata["tokenizer.ggml.token_type"])
    gap = tokenizer.control["<|fim_prefix|>"]
    types[gap] = 5
    assert Tokenizer.from_gguf({**small_metadata, "tokenizer.ggml.token_type": types}).unused_ids == (gap,)


@given(st.text())
def test_every_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    import unicodedata

    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


@given(st.lists(st.integers(0, 610), max_size=60), st.booleans())
def test_a_stream_is_the_decoding_of_the_whole(
    tokenizer: Tokenizer, ids: list[int], skip_special: bool
) -> None:
    stream = tokenizer.stream_decoder(skip_special=skip_special)
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special=skip_special)


def test_a_stream_never_cuts_a_character(tokenizer: Tokenizer) -> None:
    for text in ["日本語 🚀 naïve", "👩‍👩‍👧 𓀀"]:
        stream = tokenizer.stream_decoder()
        pieces = [stream.feed(token) for token in tokenizer.encode(text)]
        assert "\ufffd" not in "".join(pieces)
        assert "".join(pieces) == text
        assert stream.finish() == ""


def test_an_unfinished_character_is_one_replacement_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream_decoder()
    for token in tokenizer.encode("🚀")[:-1]:
        assert stream.feed(token) == ""
    assert stream.finish() == "\ufffd"


def test_lone_surrogates_are_a_usage_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="surrogates"):
        tokenizer.encode("\ud800")


class TestFromTokenizerJson:
    @pytest.fixture
    def folder(self, tmp_path: Path, small_bpe: Backend) -> Path:
        small_bpe.save(str(tmp_path / "tokenizer.json"))
        return tmp_path

    def test_same_ids_as_from_gguf(self, folder: Path, tokenizer: Tokenizer) -> None:
        other = Tokenizer.from_tokenizer_json(folder / "tokenizer.json")
        assert other.vocab_size == tokenizer.vocab_size
        assert other.control == tokenizer.control
        for text in strings(500, seed=3):
            for allow_special in (False, True):
                ids = tokenizer.encode(text, allow_special)
                assert other.encode(text, allow_special) == ids
                assert other.decode(ids) == tokenizer.decode(ids)

    def test_the_configs_beside_it_name_the_special_ids(self, folder: Path) -> None:
        config = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": None}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}))
        tokenizer = Tokenizer.from_tokenizer_json(folder / "tokenizer.json")
        control = tokenizer.control
        assert tokenizer.eos_id == control["<|im_end|>"]
        assert tokenizer.pad_id == control["<|endoftext|>"]
        assert tokenizer.bos_id is None
        assert tokenizer.stop_ids == {3, 4, control["<|im_end|>"], control["<|endoftext|>"]}

    def test_other_kinds_are_refused_by_name(self, folder: Path) -> None:
        description = json.loads((folder / "tokenizer.json").read_text())
        description["pre_tokenizer"] = {"type": "Whitespace"}
        (folder / "tokenizer.json").write_text(json.dumps(description))
        with pytest.raises(UnsupportedModelError, match="cuts text into words"):
            Tokenizer.from_tokenizer_json(folder / "tokenizer.json")

    @pytest.mark.parametrize("content", [b"{", b"[]", b'{"model": 1}', b"\xff"])
    def test_what_is_no_tokenizer_json_is_a_file_error(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelFileError):
            Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")

    def test_a_missing_file_is_a_file_error(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="missing"):
            Tokenizer.from_tokenizer_json(tmp_path / "tokenizer.json")


class TestDamagedMetadata:
    @pytest.mark.parametrize("key", ["tokens", "merges"])
    def test_a_missing_key_is_named(self, small_metadata: dict[str, Any], key: str) -> None:
        rest = {name: value for name, value in small_metadata.items() if name != f"tokenizer.ggml.{key}"}
        with pytest.raises(ModelFileError, match=f"tokenizer.ggml.{key}"):
            Tokenizer.from_gguf(rest)

    @pytest.mark.parametrize(
        ("key", "value", "error", "message"),
        [
            ("model", None, UnsupportedModelError, "None"),
            ("model", "llama", UnsupportedModelError, "'llama'"),
            ("pre", "llama-bpe", UnsupportedModelError, "'llama-bpe'"),
            ("token_type", [1, 1], ModelFileError, "one type for each of 608 tokens"),
            ("eos_token_id", 608, ModelFileError, "eos_token_id is 608"),
            ("eos_token_id", -1, ModelFileError, "eos_token_id is -1"),
            ("merges", ["a qqqq"], ModelFileError, "merges do not fit"),
            ("merges", ["ab"], ModelFileError, "merges do not fit"),
            ("tokens", [], ModelFileError, "tokens is empty"),
        ],
    )
    def test_a_bad_value_is_named(
        self, small_metadata: dict[str, Any], key: str, value: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            Tokenizer.from_gguf({**small_metadata, f"tokenizer.ggml.{key}": value})

    def test_qwen2_files_older_than_the_key_need_no_pre_tokenizer(
        self, small_metadata: dict[str, Any]
    ) -> None:
        rest = {name: value for name, value in small_metadata.items() if name != "tokenizer.ggml.pre"}
        assert Tokenizer.from_gguf(rest).encode("don't 12") == Tokenizer.from_gguf(small_metadata).encode(
            "don't 12"
        )


def test_control_and_user_defined_names_are_what_the_fixture_says(tokenizer: Tokenizer) -> None:
    assert set(tokenizer.control) == set(CONTROL)
    assert all(len(tokenizer.encode(token)) == 1 for token in USER_DEFINED)
