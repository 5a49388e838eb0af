"""A model in memory: weights packed for this CPU, a KV cache, threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen import _native
from bitqwen.errors import ModelFileError
from bitqwen.gguf import GGUFFile
from bitqwen.kernels import plans
from bitqwen.models.qwen2 import Qwen2Config

from . import head
from . import numa as placement
from .cache import KvType
from .profile import Profile
from .session import Session

DEFAULT_CONTEXT = 4096


class Model:
    """A model loaded from a GGUF file.

    Safe to use from several threads: calls wait for each other. Make one with :meth:`open`.
    """

    def __init__(self, native: _native.Model, config: Qwen2Config, metadata: Mapping[str, Any]) -> None:
        self._native = native
        self.config = config
        self.metadata = metadata
        self._cache_positions = native.free_positions()
        #: What ``numa=True`` did, in a sentence; None without it.
        self.placement: str | None = None

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        cache_positions: int | None = None,
        kv: KvType = "f16",
        batch: int = 512,
        tuning: bool = True,
        exact_head: bool | None = None,
        numa: bool = False,
    ) -> Model:
        """Reads, checks and packs a model.

        Args:
            path: a GGUF file.
            threads: threads that compute; default: one per core that this process may use.
            context: positions a sequence may have; default: 4096, or the model's own if that is less.
            cache_positions: positions that all open sessions together may hold; default: one context.
            kv: number format of the KV cache, see :mod:`bitqwen.engine.cache`.
            batch: tokens computed at once while reading a prompt.
            tuning: use what ``bitqwen kernels tune`` found on this machine, if it ran; BITQWEN_TUNING=0
                turns that off everywhere. It changes speed alone, no bit of a result.
            exact_head: False also keeps the output matrix in two bits, to skip rows of it that cannot matter
                wherever a :class:`Screen` says which do; True does not; None does where a token reads at
                least 8 % less for it and there is memory.
            numa: keep threads on CPUs that are spread over the machine's memory nodes, and each thread's
                share of the weights on its node; nothing to do where there is one, see :attr:`placement`.

        Raises:
            ModelFileError: the file cannot be read, is damaged, or does not fit its own metadata.
            UnsupportedModelError: an architecture or tensor type that this version does not run, or
                ``exact_head=False`` for rows that are no multiple of 128.
            ResourceError: too little memory; says the largest context that would fit.
            UsageError: an option is out of range.
        """
        file = GGUFFile(path)
        config = Qwen2Config.from_gguf(file.metadata, file.tensors)
        wanted = min(DEFAULT_CONTEXT, config.max_context) if context is None else context
        plan = plans.rows(plans.load(plans.here(threads)).values()) if tuning and plans.enabled() else []
        native = _native.Model(
            file.native,
            threads or 0,
            wanted,
            cache_positions or 0,
            kv,
            batch,
            plan,
            _screened_head(exact_head, config, file),
            placement.ROOT if numa else "",
        )
        model = cls(native, config, file.metadata)
        if numa:
            model.placement = placement.sentence(native.numa_nodes, native.threads)
        return model

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, padding included: the width of all logits."""
        return self._native.vocab_size

    @property
    def context(self) -> int:
        """Positions that a session may have."""
        return self._native.context

    @property
    def threads(self) -> int:
        """Threads that compute."""
        return self._native.threads

    @property
    def cache_positions(self) -> int:
        """Positions that all open sessions together may hold."""
        return self._cache_positions

    @property
    def free_positions(self) -> int:
        """Positions in pages of the KV cache that no session holds."""
        return self._native.free_positions()

    @property
    def page_positions(self) -> int:
        """Positions that a page of the KV cache has room for."""
        return self._native.page_positions

    @property
    def page_bytes(self) -> int:
        """Bytes of a page of the KV cache, all layers."""
        return self._native.page_bytes

    @property
    def screened(self) -> bool:
        """Whether a :class:`Screen` has an effect: the output matrix is kept in two bits too."""
        return self._native.screened

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: ``weights`` (packed), ``cache`` (reserved; taken as it fills), ``scratch``."""
        return self._native.memory()

    @property
    def decode_bytes(self) -> int:
        """Bytes of packed weights that computing one token reads: all but an embedding that is no head."""
        return self._native.decode_bytes()

    @property
    def greedy_bytes(self) -> int:
        """The same of a greedy token: less where the head is screened."""
        return self._native.decode_bytes(screened=True)

    def profile(self) -> Profile:
        """Measures, operation by operation, the steps that run inside a ``with`` block.

        Example::

            with model.profile() as profile:
                session.feed([token])
            print(profile)  # a table; or profile.operations, profile.operation("head").seconds

        All sessions of the model are measured together. One block at a time: a second one starts afresh.
        """
        return Profile(self._native)

    def session(self) -> Session:
        """A new, empty sequence."""
        return Session(self._native, self._native.create())

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after each of ``ids``, from an empty context: float32 [len(ids), vocab_size].

        Raises:
            ContextLengthError: more ids than the context has positions.
            UsageError: no ids, or one outside the vocabulary.
        """
        with self.session() as session:
            out = session.feed(ids, logits="all")
        if out is None:  # feed returns None only for logits="none"
            raise ModelFileError("the engine returned no logits")
        return out


def _screened_head(exact: bool | None, config: Qwen2Config, file: GGUFFile) -> str:
    """In the native engine's words."""
    if exact is None:
        return "if room" if head.choose(config, file.tensors.values()).screened else "never"
    return "never" if exact else "always"
