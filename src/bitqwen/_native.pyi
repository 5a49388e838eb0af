"""The C++ core, as Python sees it: one section for each file of native/bindings/."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

# -- sampling ----------------------------------------------------------------------------------------------

class Sampler:
    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 0,
        seed: int = 0,
        logit_bias: Sequence[tuple[int, float]] = ...,
    ) -> None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def accepted(self) -> int: ...
    def add_prompt(self, tokens: Sequence[int]) -> None: ...
    def accept(self, token: int) -> None: ...
    def sample(self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None) -> int: ...
    def distribution(
        self, logits: NDArray[np.float32], allowed: NDArray[np.uint32] | None = None
    ) -> list[tuple[int, float]]: ...

def token_logprobs(
    logits: NDArray[np.float32], token: int, top: int = 0
) -> tuple[float, list[tuple[int, float]]]: ...

# -- gguf --------------------------------------------------------------------------------------------------

class GgufFile:
    def __init__(self, path: str | bytes | PathLike[str]) -> None: ...
    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def alignment(self) -> int: ...
    @property
    def data_offset(self) -> int: ...
    def keys(self) -> list[str]: ...
    def value(self, key: str) -> Any: ...
    def value_type(self, key: str) -> tuple[int, int, int]: ...
    def tensors(self) -> list[tuple[str, int, tuple[int, ...], int, int]]: ...
    def raw(self, name: str) -> NDArray[np.uint8]: ...
    def read(self, name: str, threads: int = 0, begin: int = 0, end: int = -1) -> NDArray[np.float32]: ...
    def release(self, name: str) -> None: ...
    def type_name(self, type: int) -> str: ...
    def check_unchanged(self) -> None: ...

def dequantize(
    type: int,
    bytes: NDArray[np.uint8],
    rows: int,
    cols: int,
    threads: int = 0,
    codebook: NDArray[np.int8] | None = None,
) -> NDArray[np.float32]: ...
def codebook_shape(type: int) -> tuple[int, int] | None: ...
def codebook_name(tensor: str) -> str: ...
def type_info(type: int) -> tuple[str, int, int] | None: ...
def type_name(type: int) -> str: ...

# -- engine ------------------------------------------------------------------------------------------------

class Model:
    def __init__(
        self, file: GgufFile, threads: int, context: int, cache_positions: int, kv: str, batch: int
    ) -> None: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def threads(self) -> int: ...
    @property
    def context(self) -> int: ...
    def memory(self) -> dict[str, int]: ...
    def decode_bytes(self) -> int: ...
    def start_profile(self) -> None: ...
    def stop_profile(self) -> dict[str, Any]: ...
    def free_positions(self) -> int: ...
    def create(self) -> int: ...
    def fork(self, sequence: int) -> int: ...
    def truncate(self, sequence: int, length: int) -> None: ...
    def release(self, sequence: int) -> None: ...
    def forward(
        self, sequences: list[tuple[int, list[int], str]], hidden: bool = False
    ) -> NDArray[np.float32]: ...

def estimate_memory(
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    weights: int,
    threads: int,
    context: int,
    kv: str,
    batch: int,
) -> dict[str, int]: ...
def available_memory() -> int: ...
def isa_report() -> str: ...
def isa_name() -> str: ...
def usable_isas() -> list[str]: ...

# -- quant -------------------------------------------------------------------------------------------------

def quantize(
    type: int,
    fit: str,
    matrix: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    threads: int = 0,
) -> tuple[NDArray[np.uint8], float, float]: ...
def can_quantize(type: int, fit: str) -> bool: ...
def fit_codebook(
    type: int,
    matrix: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    seed: int = 0,
    threads: int = 0,
) -> NDArray[np.int8]: ...
def assign_codes(
    type: int,
    codebook: NDArray[np.int8],
    matrix: NDArray[np.float32],
    importance: NDArray[np.float32] | None = None,
    threads: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]: ...
def pack_codes(
    type: int, codes: NDArray[np.uint8], scales: NDArray[np.float32], threads: int = 0
) -> NDArray[np.uint8]: ...
def codebook_error(
    type: int,
    codebook: NDArray[np.int8],
    bytes: NDArray[np.uint8],
    matrix: NDArray[np.float32],
    threads: int = 0,
) -> tuple[float, float]: ...

# -- measure -----------------------------------------------------------------------------------------------

class Peaks:
    def __init__(self, threads: int, bytes: int) -> None: ...
    @property
    def threads(self) -> int: ...
    def read_bandwidth(self) -> float: ...
    def int8_rate(self) -> float: ...

def kernel_self_test(seed: int = 1) -> list[tuple[str, str, int, int]]: ...
def grid_shape(type: int) -> tuple[int, int, int] | None: ...
def read_grid(
    type: int, data: NDArray[np.uint8], rows: int, cols: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int8]]: ...
def write_grid(
    type: int, steps: NDArray[np.float32], codes: NDArray[np.int8], data: NDArray[np.uint8]
) -> None: ...
def feedback_pairs(
    type: int,
    codebook: NDArray[np.int8],
    codes: NDArray[np.uint8],
    block_of: NDArray[np.int32],
    scales: NDArray[np.float32],
    weights: NDArray[np.float32],
    factor: NDArray[np.float32],
    costs: NDArray[np.float32],
    target: NDArray[np.float32],
    threads: int = 0,
) -> None: ...
def descend_pairs(
    type: int,
    codebook: NDArray[np.int8],
    codes: NDArray[np.uint8],
    block_of: NDArray[np.int32],
    scales: NDArray[np.float32],
    moments: NDArray[np.float32],
    error: NDArray[np.float32],
    gradient: NDArray[np.float32],
    fit_scales: bool,
    threads: int = 0,
) -> int: ...
def feedback_sweep(
    type: int,
    codes: NDArray[np.int8],
    group_of: NDArray[np.int32],
    steps: NDArray[np.float32],
    offsets: NDArray[np.float32],
    weights: NDArray[np.float32],
    factor: NDArray[np.float32],
    target: NDArray[np.float32],
    threads: int = 0,
) -> None: ...
def descent_sweep(
    type: int,
    codes: NDArray[np.int8],
    group_of: NDArray[np.int32],
    steps: NDArray[np.float32],
    offsets: NDArray[np.float32],
    units: NDArray[np.float32],
    moments: NDArray[np.float32],
    error: NDArray[np.float32],
    gradient: NDArray[np.float32],
    fit_steps: bool,
    threads: int = 0,
) -> int: ...
