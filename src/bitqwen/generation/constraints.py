"""Grammars enforced token by token, by llguidance: which tokens may follow, as a mask for the sampler."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from bitqwen.errors import UnsupportedModelError, UsageError
from bitqwen.generation.grammars import Grammar, _llguidance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from bitqwen.generation.tokenizer import Tokenizer

_CACHED_GRAMMARS = 64
_MAX_REASON = 500  # characters of llguidance's own words in a message


class Constraint:
    """One answer on its way through a grammar; a ``TokenConstraint`` for the generation loop.

    Attributes:
        done: the answer is whole, and nothing may follow it.
    """

    def __init__(self, matcher: Any, vocab_size: int, kind: str) -> None:
        self._matcher = matcher
        self._kind = kind
        self._mask: NDArray[np.uint32] = np.zeros((vocab_size + 31) // 32, np.uint32)
        self.done: bool = matcher.is_stopped()

    def mask(self) -> NDArray[np.uint32]:
        """Which tokens may come next: bit t % 32 of word t // 32, uint32 [ceil(vocab_size / 32)].

        Tokens that end the text are allowed where the answer may end. The array is overwritten by the next
        call.

        Raises:
            UsageError: following the grammar takes more work than is allowed for one token.
        """
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        self._check()
        return self._mask

    def accept(self, token: int) -> None:
        """Goes on with ``token``.

        Raises:
            UsageError: the token is not allowed here.
        """
        self._matcher.consume_token(token)
        self._check()
        self.done = self._matcher.is_stopped()

    @property
    def accepting(self) -> bool:
        """Whether the answer so far is a whole one."""
        return bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(
                f"The {self._kind} could not be followed: {_reason(self._matcher.get_error())}",
                hint="Simplify it: fewer alternatives, less nesting, shorter repetitions.",
            )


class ConstraintCompiler:
    """Makes constraints for one tokenizer. Safe to use from several threads.

    Building one takes half a second for Qwen2.5's vocabulary, so keep it; it keeps the latest grammars.

    Raises:
        UnsupportedModelError: the tokenizer has no token that ends a text.
        BitqwenError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._library = _llguidance()
        if not tokenizer.stop_ids:
            raise UnsupportedModelError(
                "The model has no token that ends a text, which constrained answers need."
            )
        self._vocab_size = tokenizer.vocab_size
        self._tokenizer = self._library.LLTokenizer(
            _TokenizerAdapter(tokenizer), n_vocab=tokenizer.vocab_size, eos_token=sorted(tokenizer.stop_ids)
        )
        self._limits = self._library.LLParserLimits(verbose_errors=False)
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self, grammar: Grammar) -> Constraint:
        """A constraint for one answer.

        Raises:
            UsageError: llguidance refuses the grammar; the message has its reason.
        """
        with self._lock:
            matcher = self._compiled.get(grammar.source)
            if matcher is not None:
                self._compiled.move_to_end(grammar.source)
        if matcher is None:
            matcher = self._library.LLMatcher(
                self._tokenizer, grammar.source, log_level=0, limits=self._limits
            )
            if matcher.is_error():
                raise UsageError(f"The {grammar.kind} was refused: {_reason(matcher.get_error())}")
            with self._lock:
                self._compiled[grammar.source] = matcher
                if len(self._compiled) > _CACHED_GRAMMARS:
                    self._compiled.popitem(last=False)
        return Constraint(matcher.deep_copy(), self._vocab_size, grammar.kind)


class _TokenizerAdapter:
    """Our tokenizer as llguidance wants one: each token's bytes, and text to ids with the very same bytes."""

    bos_token_id = None
    is_tokenizer_wrapper = True  # llguidance's mark of a ready adapter

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        self.eos_token_id = min(tokenizer.stop_ids)
        self.tokens = [tokenizer.token_bytes(token) for token in ids]
        self.special_token_ids = [token for token in ids if tokenizer.is_control(token)]
        special = frozenset(self.special_token_ids)
        self._bytes = {
            data: token for token, data in enumerate(self.tokens) if len(data) == 1 and token not in special
        }

    def __call__(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text)
        data = text.encode()
        if self._join(ids) == data:
            return ids
        # The tokenizer brings text to NFC; a grammar means the very bytes that it says.
        return [self._bytes[byte] for byte in (data[i : i + 1] for i in range(len(data)))]

    def _join(self, ids: Iterable[int]) -> bytes:
        return b"".join(self.tokens[token] for token in ids)


def _reason(error: str) -> str:
    """The library's own words, without its parser's inner state."""
    words = error.partition("<state>")[0].strip()
    return words if len(words) <= _MAX_REASON else words[:_MAX_REASON] + " ..."
