from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitqwen.checkpoints import TokenizerData
from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
from bitqwen.checkpoints.tokenizer_data import CONTROL, NORMAL, UNUSED, USER_DEFINED
from bitqwen.errors import ModelFileError, UnsupportedModelError
from bitqwen.generation.tokenizer import Tokenizer
from helpers.tiny_checkpoint import TinyCheckpoint
from helpers.tiny_tokenizer import CONTROL as CONTROL_NAMES
from helpers.tiny_tokenizer import FILL_IN_MIDDLE, tiny_tokenizer
from helpers.tiny_tokenizer import USER_DEFINED as USER_NAMES

MakeTiny = Callable[..., TinyCheckpoint]
TEXTS = [
    "Hello, world!",
    "def f(x):\n    return x ** 2\n\n\n",
    "I'll say it's 12,345.67 \u00e9\u0301 e\u0301 你好 🙂",
    "  \t leading and trailing \n",
    "<tool_call>{}</tool_call>",
    "",
]


def document() -> dict[str, Any]:
    return json.loads(tiny_tokenizer().to_str())


def data(changed: dict[str, Any] | None = None, **files: Any) -> TokenizerData:
    given = {"settings": {}, "generation": {}, "config": {}} | files
    return TokenizerData.from_tokenizer_json(document() if changed is None else changed, **given)


@pytest.fixture
def folder(tiny_checkpoint: MakeTiny) -> Path:
    return tiny_checkpoint().folder


class TestFromHuggingFace:
    def test_tokens_types_and_special_ids(self, folder: Path) -> None:
        backend = tiny_tokenizer()
        tokenizer = HuggingFaceCheckpoint(folder).tokenizer()
        count = backend.get_vocab_size(with_added_tokens=True)
        assert tokenizer.tokens == [backend.id_to_token(token) for token in range(count)]
        kinds = dict(zip(tokenizer.tokens, tokenizer.token_types, strict=True))
        assert {name for name, kind in kinds.items() if kind == CONTROL} == {*CONTROL_NAMES, *FILL_IN_MIDDLE}
        assert {name for name, kind in kinds.items() if kind == USER_DEFINED} == set(USER_NAMES)
        assert set(kinds.values()) == {NORMAL, CONTROL, USER_DEFINED}
        end_of_text, end_of_turn = map(backend.token_to_id, ("<|endoftext|>", "<|im_end|>"))
        assert tokenizer.eos_id == end_of_turn
        assert tokenizer.pad_id == tokenizer.bos_id == end_of_text
        assert tokenizer.stop_ids == (end_of_turn, end_of_text)
        assert tokenizer.pre == "qwen2"
        assert tokenizer.add_bos is False

    def test_both_ways_of_writing_merges(self) -> None:
        pairs = document()
        merges = [
            merge if isinstance(merge, list) else merge.split(" ") for merge in pairs["model"]["merges"]
        ]
        pairs["model"]["merges"] = merges
        joined = document()
        joined["model"]["merges"] = [" ".join(merge) for merge in merges]
        assert data(pairs) == data(joined)
        assert data(pairs).merges[0] == " ".join(merges[0])

    def test_the_files_before_tokenizer_json_give_the_same(self, folder: Path) -> None:
        before = HuggingFaceCheckpoint(folder).tokenizer()
        (folder / "tokenizer.json").unlink()
        assert HuggingFaceCheckpoint(folder).tokenizer() == before

    def test_without_any_of_them(self, folder: Path) -> None:
        for name in ("tokenizer.json", "merges.txt"):
            (folder / name).unlink()
        with pytest.raises(ModelFileError, match="has no tokenizer"):
            HuggingFaceCheckpoint(folder).tokenizer()

    def test_vocab_json_of_another_tokenizer_is_refused(self, folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
        with pytest.raises(UnsupportedModelError, match=r"'GPT2Tokenizer'.*'Qwen2Tokenizer'"):
            HuggingFaceCheckpoint(folder).tokenizer()

    @pytest.mark.parametrize("added", [[1], {"x": {}}, {"-1": {}}, {"400": 7}, {"9" * 30: {}}])
    def test_damaged_added_tokens_of_the_old_files(self, folder: Path, added: Any) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
        with pytest.raises(ModelFileError, match="added_tokens_decoder is damaged"):
            HuggingFaceCheckpoint(folder).tokenizer()

    def test_stop_ids_from_wherever_they_are_named(self) -> None:
        end_of_text, end_of_turn = map(tiny_tokenizer().token_to_id, ("<|endoftext|>", "<|im_end|>"))
        only_config = data(config={"eos_token_id": end_of_text})
        assert (only_config.eos_id, only_config.stop_ids) == (end_of_text, (end_of_text, end_of_turn))
        listed = data(generation={"eos_token_id": [7, end_of_turn]}, config={"eos_token_id": end_of_text})
        assert (listed.eos_id, listed.stop_ids) == (7, (7, end_of_turn, end_of_text))
        named = data(settings={"eos_token": {"content": "<|im_end|>"}}, generation={"eos_token_id": 7})
        assert (named.eos_id, named.stop_ids) == (end_of_turn, (end_of_turn, 7, end_of_text))
        assert data().eos_id is None

    @pytest.mark.parametrize("eos", [-1, 1 << 30, "x", True, 1.5, [[1]]])
    def test_a_stop_id_that_is_no_token_is_refused(self, eos: Any) -> None:
        with pytest.raises(ModelFileError, match="eos_token_id is"):
            data(generation={"eos_token_id": eos})

    def test_ids_that_stand_for_nothing_are_padding(self) -> None:
        changed = document()
        changed["added_tokens"].append({"id": 410, "content": "<|late|>", "special": True})
        tokenizer = data(changed)
        assert tokenizer.tokens[407:] == ["[PAD407]", "[PAD408]", "[PAD409]", "<|late|>"]
        assert tokenizer.token_types[407:] == [UNUSED, UNUSED, UNUSED, CONTROL]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d.update(model=None), "has no model"),
            (lambda d: d["model"].update(vocab={}), "no vocabulary"),
            (lambda d: d["model"].update(vocab=["a"]), "no vocabulary"),
            (lambda d: d["model"].update(merges=None), "no merges"),
            (lambda d: d["model"].update(merges=["a b c"]), "not a pair"),
            (lambda d: d["model"].update(merges=[["a"]]), "not a pair"),
            (lambda d: d["model"].update(merges=[7]), "not a pair"),
            (lambda d: d["model"]["vocab"].update(x=1 << 30), "'x' has id 1073741824"),
            (lambda d: d["model"]["vocab"].update(x=-1), "'x' has id -1"),
            (lambda d: d["model"]["vocab"].update(x="1"), "'x' has id '1'"),
            (lambda d: d["model"]["vocab"].update(x=True), "'x' has id True"),
            (lambda d: d["model"]["vocab"].update(x=5), "have the same id 5"),
            (lambda d: d.update(added_tokens=[7]), "added token"),
            (lambda d: d.update(added_tokens=[{"id": 400}]), "added token"),
            (lambda d: d.update(pre_tokenizer=7), "not an object"),
            (lambda d: d["pre_tokenizer"].update(pretokenizers=7), "not a sequence"),
        ],
    )
    def test_damage_is_named(self, change: Callable[[dict[str, Any]], None], message: str) -> None:
        changed = document()
        change(changed)
        with pytest.raises(ModelFileError, match=message):
            data(changed)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["model"].update(type="Unigram"), "'Unigram'"),
            (lambda d: d["model"].update(byte_fallback=True), "byte fallback"),
            (lambda d: d.update(pre_tokenizer=None), "known: qwen2"),
            (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "known: qwen2"),
            (
                lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\w+"),
                "known: qwen2",
            ),
            (lambda d: d["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True), "known: qwen2"),
            (lambda d: d.update(normalizer={"type": "Lowercase"}), "known: qwen2"),
        ],
    )
    def test_another_tokenizer_is_refused(
        self, change: Callable[[dict[str, Any]], None], message: str
    ) -> None:
        changed = document()
        change(changed)
        with pytest.raises(UnsupportedModelError, match=message):
            data(changed)

    def test_deepseeks_tokenizer_is_told_by_its_missing_normalizer(self) -> None:
        changed = document()
        changed["normalizer"] = None
        changed["added_tokens"][0]["content"] = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
        changed["added_tokens"][0]["special"] = False
        tokenizer = data(changed)
        assert tokenizer.pre == "deepseek-r1-qwen"
        assert tokenizer.token_types[400] == CONTROL


class TestAsGGUFMetadata:
    def test_it_is_read_back(self, folder: Path) -> None:
        tokenizer = HuggingFaceCheckpoint(folder).tokenizer().padded(512)
        assert TokenizerData.from_gguf_metadata(tokenizer.to_gguf_metadata()) == tokenizer

    def test_padding_rows_are_named_as_llama_cpp_names_them(self) -> None:
        tokenizer = data().padded(409)
        assert tokenizer.tokens[407:] == ["[PAD407]", "[PAD408]"]
        assert tokenizer.token_types[407:] == [UNUSED, UNUSED]
        assert tokenizer.padded(409) == tokenizer

    def test_more_tokens_than_rows_are_refused(self) -> None:
        with pytest.raises(ModelFileError, match="407 tokens, the embedding only 406 rows"):
            data().padded(406)

    def test_the_metadata_makes_a_tokenizer_that_gives_transformers_ids(self, folder: Path) -> None:
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        metadata = HuggingFaceCheckpoint(folder).tokenizer().padded(512).to_gguf_metadata()
        ours = Tokenizer.from_gguf({"general.architecture": "qwen2"} | metadata)
        for text in TEXTS:
            assert ours.encode(text) == theirs.encode(text)
        chat = "<|im_start|>user\nHi<|im_end|>\n"
        assert ours.encode(chat, allow_special=True) == theirs.encode(chat)
        assert ours.stop_ids == {ours.control["<|im_end|>"], ours.control["<|endoftext|>"]}

    def test_a_file_that_names_one_end_gets_both(self) -> None:
        metadata = data(settings={"eos_token": "<|im_end|>"}).to_gguf_metadata()
        metadata = {key: value for key, value in metadata.items() if not key.startswith("bitqwen.")}
        metadata.pop("tokenizer.ggml.eot_token_id")
        read = TokenizerData.from_gguf_metadata(metadata)
        end_of_text, end_of_turn = map(tiny_tokenizer().token_to_id, ("<|endoftext|>", "<|im_end|>"))
        assert read.stop_ids == (end_of_turn, end_of_text)

    def test_types_may_be_absent(self) -> None:
        metadata = data().to_gguf_metadata()
        del metadata["tokenizer.ggml.token_type"]
        assert set(TokenizerData.from_gguf_metadata(metadata).token_types) == {NORMAL}

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("tokens", None, "tokens is missing"),
            ("tokens", [], "tokens is empty"),
            ("tokens", "abc", "tokens is missing or not a list of strings"),
            ("tokens", [1, 2], "tokens is missing or not a list of strings"),
            ("merges", None, "merges is missing"),
            ("token_type", [1], "does not hold one type for each of 407"),
            ("eos_token_id", 407, "eos_token_id is 407"),
            ("bos_token_id", "1", "bos_token_id is '1'"),
        ],
    )
    def test_damage_is_named(self, key: str, value: Any, message: str) -> None:
        metadata = data().to_gguf_metadata() | {f"tokenizer.ggml.{key}": value}
        with pytest.raises(ModelFileError, match=message):
            TokenizerData.from_gguf_metadata(metadata)

    def test_another_model_is_refused(self) -> None:
        with pytest.raises(UnsupportedModelError, match=r"'llama'.*'gpt2'"):
            TokenizerData.from_gguf_metadata({"tokenizer.ggml.model": "llama"})
