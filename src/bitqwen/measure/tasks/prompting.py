"""How a task's text becomes a prompt: by the model's chat template, or as it stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bitqwen.generation.chat_template import ChatTemplate
    from bitqwen.generation.tokenizer import Tokenizer

Style = Literal["chat", "completion"]


@dataclass(frozen=True)
class Prompter:
    """Makes prompts for one model.

    Attributes:
        tokenizer: the model's.
        template: the model's chat template; ``None`` makes every prompt plain text.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None

    @property
    def style(self) -> Style:
        """Whether prompts are conversations or plain text."""
        return "completion" if self.template is None else "chat"

    def encode(self, text: str, opening: str = "") -> list[int]:
        """Token ids of a prompt.

        Args:
            text: what the user says, or the text to go on with.
            opening: words that the answer begins with.

        Raises:
            UsageError, ModelFileError: the chat template refuses the messages, or does not work.
        """
        if self.template is None:
            ids = self.tokenizer.encode(text + opening)
            if self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
                ids.insert(0, self.tokenizer.bos_id)
            return ids
        messages = [{"role": "user", "content": text}]
        if not opening:
            return self.template.encode(self.tokenizer, messages)
        messages.append({"role": "assistant", "content": opening})
        return self.template.encode(self.tokenizer, messages, continue_final_message=True)
