"""Engines of others that run in a worker's process, each behind the same four methods as ours."""

from __future__ import annotations

import ctypes
from typing import Any

from bitqwen.errors import BitqwenError

_BATCH = 512  # tokens of a step, llama.cpp's own default


# Of ggml's types.
_F16, _Q4_0, _Q8_0 = 1, 2, 8


def _cache_types(kv: str) -> tuple[int, int]:
    """Types of keys and values that come nearest to ours: with q4, keys have eight bits here too."""
    return {"f16": (_F16, _F16), "q4": (_Q8_0, _Q4_0)}.get(kv, (_Q8_0, _Q8_0))


class LlamaCpp:
    """llama.cpp inside llama-cpp-python, through its low-level evaluation."""

    def __init__(self, model: str, threads: int, context: int, kv: str) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise BitqwenError(
                "llama-cpp-python is not installed.", hint="pip install llama-cpp-python"
            ) from error
        self.module = llama_cpp
        keys, values = _cache_types(kv)
        self.model = llama_cpp.Llama(
            model,
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=_BATCH,
            flash_attn=keys != _F16,  # it needs that for a quantised cache
            verbose=False,
            type_k=keys,
            type_v=values,
        )
        self.vocab_size = self.model.n_vocab()

    def facts(self) -> dict[str, Any]:
        """Its version and what it was compiled for."""
        info = self.module.llama_print_system_info().decode().strip()
        return {"version": self.module.__version__, "system_info": info}

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context."""
        self.model.eval(ids)

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        self.model.n_tokens = length


class IkLlamaCpp:
    """ik_llama.cpp inside ik-llama-cpp-python, through its C interface.

    The package's own class chooses no cache type and forgets only everything at once.
    """

    def __init__(self, model: str, threads: int, context: int, kv: str) -> None:
        try:
            import ik_llama_cpp
            from ik_llama_cpp import _ctypes_api as api
        except (ImportError, OSError) as error:
            raise BitqwenError(
                f"ik-llama-cpp-python cannot be used: {error}.", hint="pip install ik-llama-cpp-python"
            ) from error
        self.module, self.api, self.filled = ik_llama_cpp, api, 0
        try:
            self._remove = api._lib.llama_kv_cache_seq_rm
            self._remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
            self._remove.restype = ctypes.c_bool
            self._system_info = api._lib.llama_print_system_info
            self._system_info.argtypes, self._system_info.restype = [], ctypes.c_char_p
            api.llama_backend_init()
            self.model = api.llama_model_load_from_file(model.encode(), api.llama_model_default_params())
            if not self.model:
                raise BitqwenError(f"ik-llama-cpp-python cannot load {model}.", hint="It says why above.")
            options = api.llama_context_default_params()
            options.n_ctx, options.n_batch, options.n_ubatch = context, _BATCH, _BATCH
            options.n_threads = options.n_threads_batch = threads
            keys, values = _cache_types(kv)
            if keys != _F16:
                options.flash_attn, options.type_k, options.type_v = True, keys, values
            self.context = api.llama_init_from_model(self.model, options)
            self.vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
            self._batch = api.llama_batch_init(_BATCH, 0, 1)
        except AttributeError as error:
            raise BitqwenError(
                f"ik-llama-cpp-python {ik_llama_cpp.__version__} lacks what is needed: {error}.",
                hint="Version 0.1.5 has it; or give the path of ik_llama.cpp's llama-bench.",
            ) from error
        if not self.context:
            raise BitqwenError(f"ik-llama-cpp-python has no room for {context} tokens.")

    def facts(self) -> dict[str, Any]:
        """Its version and what it was compiled for."""
        return {"version": self.module.__version__, "system_info": self._system_info().decode().strip()}

    def feed(self, ids: list[int]) -> None:
        """Computes ids after those in the context, logits of the last one included."""
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            self._batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self._batch.token[i], self._batch.pos[i] = token, self.filled + i
                self._batch.n_seq_id[i], self._batch.seq_id[i][0] = 1, 0
                self._batch.logits[i] = start + i == len(ids) - 1
            code = self.api.llama_decode(self.context, self._batch)
            if code:
                raise BitqwenError(f"ik-llama-cpp-python: llama_decode gave {code}.")
            self.filled += len(part)

    def truncate(self, length: int) -> None:
        """Forgets what comes after ``length`` tokens."""
        if length < self.filled:
            self._remove(self.context, 0, length, -1)
            self.filled = length
