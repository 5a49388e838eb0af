"""Names of metadata keys, spelt once."""

from __future__ import annotations

ARCHITECTURE = "general.architecture"
NAME = "general.name"
ALIGNMENT = "general.alignment"
FILE_TYPE = "general.file_type"
QUANTIZATION_VERSION = "general.quantization_version"

TOKENIZER_MODEL = "tokenizer.ggml.model"
TOKENIZER_PRE = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TOKEN_TYPES = "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
BOS_ID = "tokenizer.ggml.bos_token_id"
EOS_ID = "tokenizer.ggml.eos_token_id"
EOT_ID = "tokenizer.ggml.eot_token_id"
PADDING_ID = "tokenizer.ggml.padding_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"
CHAT_TEMPLATE = "tokenizer.chat_template"

# Recommended sampling settings, by their names in generation_config.json.
SAMPLING = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}

# Ours: where a file came from and how it was made.
BITQWEN_VERSION = "bitqwen.version"
BITQWEN_SCHEME = "bitqwen.scheme"
BITQWEN_SOURCE = "bitqwen.source"
BITQWEN_REVISION = "bitqwen.source_revision"
BITQWEN_SOURCE_SHA256 = "bitqwen.source_sha256"
BITQWEN_SETTINGS = "bitqwen.settings"
BITQWEN_STOP_IDS = "bitqwen.stop_token_ids"

# Ours: the matrices that are stored in rotated columns, and the tensor of their signs (docs/file-format.md).
ROTATED = "bitqwen.rotated"
SIGNS = "rotation.signs"
