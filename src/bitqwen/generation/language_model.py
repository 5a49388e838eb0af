"""A model that reads and writes text: engine, tokenizer, chat template and recommended settings as one."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from bitqwen.errors import ContextLengthError, ModelFileError, UsageError
from bitqwen.generation.chat_template import ChatTemplate, Message
from bitqwen.generation.grammars import Grammar
from bitqwen.generation.options import split_options
from bitqwen.generation.results import Generation
from bitqwen.generation.sampling import SamplingParams, check_integer
from bitqwen.generation.session_cache import SessionCache
from bitqwen.generation.text_stream import TextStream
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from bitqwen.engine import Model
    from bitqwen.engine.cache import KvType
    from bitqwen.generation.chat import Chat
    from bitqwen.generation.constraints import Constraint, ConstraintCompiler
    from bitqwen.generation.options import GenerationOptions, PromptOptions

Prompt = str | Sequence[Message] | Sequence[int]
"""Text to go on with, messages to answer, or token ids to go on with."""


class LanguageModel:
    """A loaded model. Several threads may use it at once.

    Attributes:
        model: the engine.
        tokenizer: text to ids and back.
        template: messages to a prompt.
        sampling: what a generation uses for settings that it is not given.
        load_seconds: how long loading took.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        sampling: SamplingParams | None = None,
        *,
        load_seconds: float = 0.0,
    ) -> None:
        if tokenizer.vocab_size > model.vocab_size:
            raise ModelFileError(
                f"The tokenizer has ids up to {tokenizer.vocab_size - 1}, the model's output only rows up to "
                f"{model.vocab_size - 1}.",
                hint="The file's tokenizer is another model's: convert the model again.",
            )
        self.model = model
        self.tokenizer = tokenizer
        self.template = template or ChatTemplate()
        self.sampling = sampling or SamplingParams()
        self.load_seconds = load_seconds
        self._sessions = SessionCache(model)
        self._compiler: ConstraintCompiler | None = None
        self._compiling = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        cache_positions: int | None = None,
        kv: KvType = "f16",
        batch: int = 512,
        chat_template: str | None = None,
        exact_head: bool | None = None,
        numa: bool = False,
    ) -> LanguageModel:
        """Loads a GGUF file.

        Args:
            path: the file.
            threads: of the engine; ``None`` for one a core.
            context: the longest sequence in tokens; ``None`` for 4096, or the model's own if that is less.
            cache_positions: tokens of all sequences that are kept at once; ``None`` for one context.
            kv: type of the KV cache, "f16", "q8" or "q4".
            batch: tokens of a prompt that are read at once.
            chat_template: to use instead of the file's.
            exact_head: True computes every logit of every token; False only those that can be chosen, where
                the sampling settings say which, with the same answers; None: the latter where it pays.
            numa: place threads and weights on the machine's memory nodes, see
                :meth:`bitqwen.engine.Model.open`.

        Raises:
            ModelFileError, UnsupportedModelError: the file cannot be read or run.
            ResourceError: it needs more memory than there is.
            UsageError: an option outside its range.
        """
        from bitqwen.engine import Model

        started = time.perf_counter()
        model = Model.open(
            path,
            threads=threads,
            context=context,
            cache_positions=cache_positions,
            kv=kv,
            batch=batch,
            exact_head=exact_head,
            numa=numa,
        )
        metadata = model.metadata
        tokenizer = Tokenizer.from_gguf(metadata)
        source = chat_template if chat_template is not None else metadata.get(keys.CHAT_TEMPLATE)
        return cls(
            model,
            tokenizer,
            ChatTemplate(source, special_tokens=_special_token_texts(tokenizer)),
            SamplingParams.from_metadata(metadata),
            load_seconds=time.perf_counter() - started,
        )

    @property
    def context(self) -> int:
        """The longest sequence, prompt and answer together, in tokens."""
        return self.model.context

    def generate(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> Generation:
        """Makes a whole answer.

        Args:
            prompt: text to go on with, messages to answer, or token ids.
            **options: see :class:`GenerationOptions`.

        Raises:
            UsageError: an empty prompt, an unknown option, or a value that is not allowed.
            ContextLengthError: the prompt is longer than the context.
        """
        with self.stream(prompt, **options) as stream:
            return stream.result()

    def stream(self, prompt: Prompt, **options: Unpack[GenerationOptions]) -> TextStream:
        """Makes an answer piece by piece: ``for piece in model.stream(...): print(piece, end="")``.

        Args:
            prompt: text to go on with, messages to answer, or token ids.
            **options: see :class:`GenerationOptions`.

        Raises:
            UsageError: an empty prompt, an unknown option, or a value that is not allowed.
            ContextLengthError: the prompt is longer than the context.
        """
        if isinstance(grammar := options.get("constraint"), Grammar):
            options["constraint"] = self.constraint(grammar)
        prompt_options, settings = split_options(options, self.sampling)
        ids = self.encode_prompt(prompt, **prompt_options)
        if len(ids) > self.context:
            raise ContextLengthError(
                f"The prompt has {len(ids)} tokens; the context holds {self.context}.",
                hint="Shorten the prompt, or load the model with a larger context.",
            )
        return TextStream(
            self._sessions,
            self.tokenizer,
            ids,
            settings,
            context=self.context,
            load_seconds=self.load_seconds,
            screened=self.model.screened,
        )

    def constraint(self, grammar: Grammar) -> Constraint:
        """What binds one answer to a grammar, for a generation loop of your own.

        Raises:
            UsageError: the grammar cannot be enforced; the message says why.
            BitqwenError: llguidance is not installed.
        """
        with self._compiling:
            if self._compiler is None:
                from bitqwen.generation.constraints import ConstraintCompiler

                self._compiler = ConstraintCompiler(self.tokenizer)
        return self._compiler.constraint(grammar)

    def chat(self, system: str | None = None, **options: Unpack[GenerationOptions]) -> Chat:
        """Begins a conversation that remembers what was said.

        Args:
            system: the system prompt; ``None`` leaves it to the model's template.
            **options: for every answer; see :class:`GenerationOptions`.
        """
        from bitqwen.generation.chat import Chat

        return Chat(self, system, options)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The model's logits after each token: float32 [len(ids), model.vocab_size].

        Raises:
            UsageError: no ids, or one that the model does not have.
            ContextLengthError: more ids than the context holds.
        """
        return self.model.logits(self._checked_ids(ids))

    def encode_prompt(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> list[int]:
        """The token ids that a prompt becomes.

        Args:
            prompt: text to go on with, messages to answer, or token ids, which stay as they are.
            **options: see :class:`PromptOptions`.

        Raises:
            UsageError: an empty prompt, or messages that the chat template refuses.
        """
        allow_special = bool(options.get("allow_special"))
        if isinstance(prompt, str):
            _refuse_chat_options(options)
            ids = self.tokenizer.encode(prompt, allow_special=allow_special)
            if ids and self.tokenizer.add_bos and self.tokenizer.bos_id is not None:
                ids.insert(0, self.tokenizer.bos_id)
        elif len(prompt) and isinstance(prompt[0], Mapping):
            ids = self.template.encode(
                self.tokenizer,
                prompt,  # type: ignore[arg-type] # checked there, message by message
                options.get("tools"),
                continue_final_message=bool(options.get("continue_final_message")),
                allow_special=allow_special,
                **(options.get("template_variables") or {}),
            )
        else:
            _refuse_chat_options(options)
            ids = self._checked_ids(prompt) if len(prompt) else []  # type: ignore[arg-type] # checked there
        if not ids:
            raise UsageError("The prompt is empty.", hint="Give text, messages or token ids.")
        return ids

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        for token in ids:
            check_integer("A token id", token, 0, self.model.vocab_size - 1)
        return [int(token) for token in ids]

    def close(self) -> None:
        """Frees the conversation kept for reuse; the model goes with its last reference."""
        self._sessions.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refuse_chat_options(options: PromptOptions) -> None:
    for name in ("tools", "continue_final_message", "template_variables"):
        if options.get(name):
            raise UsageError(
                f"The option {name!r} needs a prompt of messages; this prompt is text or token ids."
            )


def _special_token_texts(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    return {name: tokenizer.decode([token]) for name, token in ids.items() if token is not None}
