"""The real vocabulary and the real model, against tokenizers and samplers that nobody here wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_corpus import strings
from tokenizers.normalizers import NFC

from bitqwen.generation.byte_level import piece_to_bytes
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile
from bitqwen.gguf.pre_tokenizers import PRE_TOKENIZERS

pytestmark = pytest.mark.real

ORDINARY = 151_643  # ids below are ordinary tokens
TEXTS = strings(10_000)


@pytest.fixture(scope="module")
def metadata(real_model: Path) -> dict[str, Any]:
    return dict(GGUFFile(real_model).metadata)


@pytest.fixture(scope="module")
def real_tokenizer(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


@pytest.fixture(scope="module")
def ids(real_tokenizer: Tokenizer) -> list[list[int]]:
    return [real_tokenizer.encode(text) for text in TEXTS]


def nfc(text: str) -> str:
    """What Qwen2's tokenizer does first in transformers, and tiktoken and llama.cpp leave to their callers.

    By transformers' tables: Python's are newer and put 50 combining marks, when stacked, in another order.
    """
    return NFC().normalize_str(text)


def first_difference(
    found: list[list[int]], expected: list[list[int]]
) -> tuple[str, list[int], list[int]] | None:
    return next(
        ((text, a, b) for text, a, b in zip(TEXTS, found, expected, strict=True) if a != b),
        None,
    )


def test_ids_are_tiktokens(metadata: dict[str, Any], real_tokenizer: Tokenizer, ids: list[list[int]]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    tokens = metadata["tokenizer.ggml.tokens"]
    oracle = tiktoken.Encoding(
        "qwen2",
        pat_str=PRE_TOKENIZERS["qwen2"].words,
        mergeable_ranks={piece_to_bytes(token): rank for rank, token in enumerate(tokens[:ORDINARY])},
        special_tokens={tokens[token]: token for token in range(ORDINARY, real_tokenizer.vocab_size)},
    )
    user_defined = {"<tool_call>", "</tool_call>"}
    plain = [oracle.encode(nfc(text), allowed_special=user_defined, disallowed_special=()) for text in TEXTS]
    assert first_difference(ids, plain) is None
    special = [oracle.encode(nfc(text), allowed_special="all") for text in TEXTS]
    assert first_difference([real_tokenizer.encode(text, True) for text in TEXTS], special) is None
    for expected in special[:2000]:
        assert real_tokenizer.decode(expected) == oracle.decode(expected)


def test_ids_are_llama_cpps(real_model: Path, real_tokenizer: Tokenizer, ids: list[list[int]]) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    oracle = llama_cpp.Llama(model_path=str(real_model), vocab_only=True, verbose=False)
    encoded = [nfc(text).encode() for text in TEXTS]
    plain = [oracle.tokenize(text, add_bos=False, special=False) for text in encoded]
    assert first_difference(ids, plain) is None
    special = [oracle.tokenize(text, add_bos=False, special=True) for text in encoded]
    assert first_difference([real_tokenizer.encode(text, True) for text in TEXTS], special) is None


def test_ids_are_those_of_transformers_qwen2_tokenizer(
    metadata: dict[str, Any], real_tokenizer: Tokenizer
) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: rank for rank, token in enumerate(tokens[: real_tokenizer.vocab_size])}
    oracle = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
    oracle.add_special_tokens({"additional_special_tokens": list(real_tokenizer.control)})
    oracle.add_tokens(["<tool_call>", "</tool_call>"])
    expected = [oracle(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert first_difference([real_tokenizer.encode(text, True) for text in TEXTS], expected) is None


def test_every_token_decodes_to_its_bytes_and_back(real_tokenizer: Tokenizer) -> None:
    # A token that is whole characters in NFC comes back as the same text, if not as one token.
    for token in range(0, real_tokenizer.vocab_size, 7):
        data = real_tokenizer.token_bytes(token)
        assert data
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        assert real_tokenizer.decode(real_tokenizer.encode(text, allow_special=True)) == nfc(text)


def test_the_file_names_one_end_and_both_stop(real_tokenizer: Tokenizer) -> None:
    assert real_tokenizer.eos_id == 151_645
    assert real_tokenizer.stop_ids == {151_643, 151_645}
    assert real_tokenizer.vocab_size == 151_665


def test_the_bundled_template_is_the_models_own(metadata: dict[str, Any]) -> None:
    # Qwen2.5-Coder's has doubled braces in one sentence on tools; Qwen2.5's own has not.
    call = '{"name": <function-name>, "arguments": <args-json-object>}'
    own, bundled = ChatTemplate(metadata["tokenizer.chat_template"]), ChatTemplate()
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "tool_calls": [{"name": "f", "arguments": {"x": "ä"}}]},
        {"role": "tool", "content": "c"},
        {"role": "tool", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "system", "content": "f"},
    ]
    for start in (0, 1, 2, 5):
        for tools in (None, [{"type": "function", "function": {"name": "f"}}]):
            expected = own.render(messages[start:], tools).replace("{" + call + "}", call)
            assert bundled.render(messages[start:], tools) == expected


def test_the_model_answers_sensibly_and_stops_by_itself(real_model: Path) -> None:
    with LanguageModel.load(real_model, context=512) as model:
        question = [{"role": "user", "content": "What is the capital of France? One word."}]
        answer = model.generate(question, temperature=0, max_tokens=20)
        assert "Paris" in answer.text
        assert (answer.finish_reason, answer.stopped_by) == ("stop", 151_645)
        sampled = [model.generate(question, seed=5, temperature=1.5, max_tokens=12).tokens for _ in range(2)]
        assert sampled[0] == sampled[1]
