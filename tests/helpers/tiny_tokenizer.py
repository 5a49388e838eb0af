"""A small byte-level BPE with Qwen2's pre-tokenizer and control tokens, trained here."""

from __future__ import annotations

import functools

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bitqwen.gguf.pre_tokenizers import PRE_TOKENIZERS

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER_DEFINED = ["<tool_call>", "</tool_call>"]
# Not flagged special in tokenizer.json, as in Qwen2.5's, but a control token all the same.
FILL_IN_MIDDLE = ["<|fim_prefix|>", "<|fim_suffix|>"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_WORDS = [
    "the quick brown fox jumps over the lazy dog; the dog did not mind, and the fox went on",
    "def add(left, right):\n    return left + right\n\nfor i in range(10):\n    print(add(i, 2 * i))\n",
    "A transformer reads tokens, attends to what came before, and writes the next token.",
    "Über den Wolken: naïve café, señor, Ελλάδα, Москва, 東京の夜, 你好 世界 🙂 🚀",
    "In 1815 there were 36 letters, 4,096 words and 0.5 % of doubt; that's what they've said.",
]


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """Token ids: bytes and merges first, then ``CONTROL``, ``USER_DEFINED`` and ``FILL_IN_MIDDLE``."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZERS["qwen2"].words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(_WORDS, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token in USER_DEFINED + FILL_IN_MIDDLE])
    return backend
