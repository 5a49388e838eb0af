"""bitqwen runs Qwen2.5 language models on this machine's CPU.

import bitqwen
model = bitqwen.load("model.gguf")  # or a hub id, or a checkpoint folder
print(model.generate("def quicksort(xs):", max_tokens=64, temperature=0))
for piece in model.stream([{"role": "user", "content": "Hello!"}]): print(piece, end="")
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bitqwen.generation.language_model import LanguageModel, Prompt
    from bitqwen.generation.loading import LoadOptions
    from bitqwen.generation.options import GenerationOptions
    from bitqwen.generation.results import Generation
    from bitqwen.generation.text_stream import TextStream

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "load", "stream"]


def load(source: str | PathLike[str], **options: Unpack[LoadOptions]) -> LanguageModel:
    """Loads a model.

    Args:
        source: a .gguf file, a checkpoint folder, a hub id or ``package:NAME``. What is no GGUF file is
            converted first, into bitqwen's cache, where the next call finds it.
        **options: see :class:`~bitqwen.generation.loading.LoadOptions`.

    Raises:
        UsageError: the source is nothing that bitqwen knows, or an option is not allowed.
        DownloadError, ModelFileError, UnsupportedModelError, CheckpointError: it cannot be fetched or used.
        ResourceError: it needs more memory or disk space than there is.
    """
    from bitqwen.generation.loading import load as load_model

    return load_model(source, **options)


def generate(
    model: LanguageModel | str | PathLike[str], prompt: Prompt, **options: Unpack[GenerationOptions]
) -> Generation:
    """Makes a whole answer, with a loaded model or one that is loaded for this call.

    Args:
        model: a loaded model, or a source for :func:`load`.
        prompt: text to go on with, messages to answer, or token ids.
        **options: see :class:`~bitqwen.generation.options.GenerationOptions`.
    """
    return _loaded(model).generate(prompt, **options)


def stream(
    model: LanguageModel | str | PathLike[str], prompt: Prompt, **options: Unpack[GenerationOptions]
) -> TextStream:
    """Makes an answer piece by piece; arguments as for :func:`generate`."""
    return _loaded(model).stream(prompt, **options)


def _loaded(model: LanguageModel | str | PathLike[str]) -> LanguageModel:
    return load(model) if isinstance(model, str | PathLike) else model
