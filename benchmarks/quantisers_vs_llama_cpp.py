"""One tensor type, four ways to choose its codes: what each does to a model's predictions.

The matrices of the model's first layers are quantised to the type, and all others to Q8_0, so that a
measurement takes minutes. The ways: bitqwen without calibration ("plain"), with importance from a text
("fit"), llama.cpp's own quantiser with the same importance ("llama.cpp"), and the recipe of a calibrated
conversion ("swept"). Divergence is from the source, on texts that calibration never saw.

    python benchmarks/quantisers_vs_llama_cpp.py [SOURCE.gguf] [--type q2_k] [--layers 7] [--tokens 8192]
        [--text NAME=PATH ...] [--save results.json]
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llama_cpp
import machine
import numpy as np
import numpy.typing as npt

from bitqwen.calibrate import Calibration
from bitqwen.calibrate.encoder import CalibratedEncoder
from bitqwen.checkpoints import Checkpoint, open_checkpoint, packages
from bitqwen.convert import convert
from bitqwen.gguf import TensorType, type_info
from bitqwen.measure.reference import ReferenceFile
from bitqwen.measure.runner import measure_texts
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Encoded, Recipe, Statistics, TensorPlan, quantize
from bitqwen.texts import load_texts, packaged_names

Array = npt.NDArray[np.float32]

_ROWS = 64  # that llama.cpp's quantiser gets at once
_OTHERS = TensorPlan(TensorType.Q8_0, "plain")


def llama_quantiser() -> Callable[[Array, TensorType, Array], npt.NDArray[np.uint8]]:
    """llama.cpp's ggml_quantize_chunk, on two threads."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    function = ctypes.CDLL(str(next(folder.glob("libggml-base.so*")))).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def run(matrix: Array, tensor_type: TensorType, importance: Array) -> npt.NDArray[np.uint8]:
        info = type_info(tensor_type)
        rows, cols = matrix.shape
        row_bytes = cols // info.block_size * info.block_bytes
        out = np.empty(rows * row_bytes, np.uint8)
        weights = np.ascontiguousarray(importance, np.float32)

        def part(begin: int) -> None:
            piece = np.ascontiguousarray(matrix[begin : begin + _ROWS])
            target = out[begin * row_bytes :]
            function(
                int(tensor_type),
                piece.ctypes.data,
                target.ctypes.data,
                0,
                len(piece),
                cols,
                weights.ctypes.data,
            )

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(part, range(0, rows, _ROWS)))
        return out

    return run


class FirstLayers:
    """A calibration for ``convert`` that quantises the first layers in one of the ways."""

    settings: Mapping[str, str] = {}
    rotates = False  # llama.cpp's way has none
    draft = None

    def __init__(self, way: str, layers: int, swept: Mapping[str, Encoded], importance: Mapping[str, Array]):
        self.way, self.layers, self.swept, self.importance = way, layers, swept, importance
        self.lost_outputs: dict[str, float] = {}

    def start(
        self, checkpoint: Checkpoint, config: Qwen2Config, plans: Mapping[str, TensorPlan], *_: Any, **__: Any
    ) -> FirstLayers:
        """Begins a conversion."""
        self.checkpoint, self.plans = checkpoint, plans
        return self

    def layer(self, layer: int) -> dict[str, Encoded]:
        """A layer's matrices; nothing for those that are left to the plan."""
        if layer >= self.layers:
            return {}
        names = [name for name in self.plans if name.startswith(f"model.layers.{layer}.")]
        return {name: self.encode(name) for name in names}

    def encode(self, name: str) -> Encoded:
        """One matrix."""
        if self.way == "swept":
            return self.swept[name]
        matrix, plan = self.checkpoint.read(name), self.plans[name]
        if self.way == "llama.cpp":
            return Encoded(llama_quantiser()(matrix, plan.tensor_type, self.importance[name]), 0.0, 1.0)
        statistics = Statistics(self.importance[name]) if self.way == "fit" else None
        return quantize(matrix, plan.tensor_type, method=plan.method, statistics=statistics)

    def head(self) -> None:
        """The head is left to the plan."""

    def refine(self, output: Path, progress: Callable[[str], None]) -> None:
        """Nothing to do: there is no draft."""

    def finish(self) -> None:
        """Nothing is kept."""


def main() -> None:
    """Calibrates once, writes a file for each way, and measures them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("source", nargs="?", type=Path, help="a GGUF file; by default the packaged model")
    parser.add_argument("--type", default="q2_k")
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--recipe", default="fit+gptq+descent")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--text", action="append", metavar="NAME[=PATH]")
    parser.add_argument("--ways", default="plain,fit,llama.cpp,swept")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    source = options.source or packages.fetch("qwen2.5-coder-1.5b")
    checkpoint = open_checkpoint(source)
    config = config_from_hf(checkpoint.config, source=str(source))
    plan = TensorPlan(TensorType[options.type.upper()], "mse")
    plans = {spec.hf_name: _OTHERS for spec in config.tensors() if spec.role in ("matrix", "embedding")}
    first = [name for name in plans if (f"{name}..".split(".")[2]).isdigit()]
    first = [name for name in first if int(name.split(".")[2]) < options.layers]
    plans |= dict.fromkeys(first, plan)
    started = time.perf_counter()
    ids = Calibration(tokens=options.tokens).ids(checkpoint)
    encoder = CalibratedEncoder(
        checkpoint, config, {name: plans[name] for name in first}, ids, Recipe.parse(options.recipe)
    )
    swept: dict[str, Encoded] = {}
    for layer in range(options.layers):
        swept |= encoder.layer(layer)
        print(f"calibrated layer {layer}: {time.perf_counter() - started:.0f} s", flush=True)
    texts = load_texts(options.text or packaged_names())
    results = []
    with tempfile.TemporaryDirectory() as folder:
        saved, output = Path(folder) / "source.ref", Path(folder) / "out.gguf"
        measure_texts(source, texts, save=saved, chunks=options.chunks)
        for way in options.ways.split(","):
            calibration = FirstLayers(way, options.layers, swept, encoder.importance)
            convert(source, output, plans=plans, calibration=calibration)
            for result in measure_texts(output, {}, reference=ReferenceFile(saved)):
                found = result.divergence
                assert found is not None
                row = {
                    "way": way,
                    "text": result.name,
                    "kl": found.kl.value,
                    "low": found.kl.low,
                    "high": found.kl.high,
                    "same_top": found.same_top.value,
                    "perplexity_ratio": found.perplexity_ratio,
                }
                results.append(row)
                interval = f"({found.kl.low:.4f} to {found.kl.high:.4f})"
                print(f"{way:10} {result.name:8} KL {found.kl.value:.4f} {interval}", end="  ")
                print(f"same top token {found.same_top.value:.1%}", flush=True)
    if options.save:
        machine.save(options.save, "quantisers_vs_llama_cpp", results)


if __name__ == "__main__":
    main()
