"""A conversation that remembers what was said."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from bitqwen.generation.results import Generation, Piece

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from bitqwen.generation.language_model import LanguageModel
    from bitqwen.generation.options import GenerationOptions
    from bitqwen.generation.text_stream import TextStream


class Chat:
    """Messages so far, and the model that answers them.

    What the user says is kept together with the answer: a turn that fails leaves the conversation as it
    was, and one that is left early keeps the answer as far as it came.

    Attributes:
        messages: the conversation; change it freely between turns.
        last: the latest answer's stream, for its finish reason and timings.
    """

    def __init__(self, model: LanguageModel, system: str | None, options: GenerationOptions) -> None:
        self.messages: list[dict[str, Any]] = (
            [] if system is None else [{"role": "system", "content": system}]
        )
        self.last: TextStream | None = None
        self._model = model
        self._options = options

    def send(self, text: str, **options: Unpack[GenerationOptions]) -> Generation:
        """Says ``text`` and returns the answer.

        Args:
            text: what the user says.
            **options: for this answer only; see :class:`GenerationOptions`.

        Raises:
            UsageError, ContextLengthError: as :meth:`LanguageModel.generate`.
        """
        stream = self._answer(text, options)
        for _ in self._kept(text, stream):
            pass
        return stream.result()

    def stream(self, text: str, **options: Unpack[GenerationOptions]) -> Generator[Piece, None, None]:
        """Says ``text`` and yields the answer's pieces.

        Args:
            text: what the user says.
            **options: for this answer only; see :class:`GenerationOptions`.

        Raises:
            UsageError, ContextLengthError: as :meth:`LanguageModel.stream`.
        """
        return self._kept(text, self._answer(text, options))

    def _answer(self, text: str, options: GenerationOptions) -> TextStream:
        turn = [*self.messages, {"role": "user", "content": text}]
        merged: GenerationOptions = {**self._options, **options}
        self.last = self._model.stream(turn, **merged)
        return self.last

    def _kept(self, text: str, stream: TextStream) -> Generator[Piece, None, None]:
        try:
            with stream:
                yield from stream
        except (GeneratorExit, KeyboardInterrupt):
            self._keep(text, stream)
            raise
        self._keep(text, stream)

    def _keep(self, text: str, stream: TextStream) -> None:
        self.messages.append({"role": "user", "content": text})
        self.messages.append({"role": "assistant", "content": stream.text})
