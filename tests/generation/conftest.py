from __future__ import annotations

from typing import Any

import pytest
from text_corpus import CONTROL, USER_DEFINED, strings
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bitqwen.checkpoints.tokenizer_data import CONTROL as CONTROL_TYPE
from bitqwen.checkpoints.tokenizer_data import NORMAL, UNUSED
from bitqwen.checkpoints.tokenizer_data import USER_DEFINED as USER_DEFINED_TYPE
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf.pre_tokenizers import PRE_TOKENIZERS


@pytest.fixture(scope="session")
def small_bpe() -> Backend:
    """A byte-level BPE of 600 entries, trained here, with Qwen2's pre-tokenizer and added tokens."""
    from tokenizers import AddedToken, Regex

    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZERS["qwen2"].words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(strings(300, seed=1), trainer)
    backend.add_special_tokens(CONTROL)
    backend.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED])
    return backend


@pytest.fixture(scope="session")
def small_metadata(small_bpe: Backend) -> dict[str, Any]:
    """The same as GGUF metadata, with two padding rows."""
    import json

    merges = json.loads(small_bpe.to_str())["model"]["merges"]
    vocabulary = small_bpe.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    types = [
        CONTROL_TYPE if token in CONTROL else USER_DEFINED_TYPE if token in USER_DEFINED else NORMAL
        for token in tokens
    ]
    return {
        "general.architecture": "qwen2",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": [*tokens, "[PAD606]", "[PAD607]"],
        "tokenizer.ggml.token_type": [*types, UNUSED, UNUSED],
        "tokenizer.ggml.merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.ggml.bos_token_id": vocabulary["<|endoftext|>"],
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="session")
def tokenizer(small_metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(small_metadata)
