"""What a calibrated conversion of a size would take: one layer of its real shape, measured, times its layers.

The weights are random, of a checkpoint that is made up as it is read, and the tokens as many as a conversion
takes. Head and embedding, distillation and the measurement of sensitivities are not in it.

    python benchmarks/layer_cost.py SIZE [SIZE ...] [--type V3] [--tokens 16384]
        [--recipe fit+rotate+gptq+descent] [--save FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt

from bitqwen.calibrate.calibration import DEFAULT_TOKENS
from bitqwen.calibrate.encoder import CalibratedEncoder
from bitqwen.gguf import TensorType
from bitqwen.kernels.presets import SIZES, preset
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import Recipe, Rotation, TensorPlan

CHUNK = 512
_VOCABULARY = 4096  # rows that the layer never sees need not be made up
_BYTES_OF_RSS = 1 if sys.platform == "darwin" else 1024


class RandomWeights:
    """A checkpoint of one layer, made up as it is read, and the same each time."""

    def __init__(self, config: Qwen2Config) -> None:
        self._shapes = {spec.hf_name: spec.shape for spec in config.tensors() if not spec.optional}

    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._shapes)

    def read(self, name: str, begin: int = 0, end: int | None = None) -> npt.NDArray[np.float32]:
        """A tensor, or rows [begin, end) of it: small random numbers; ones for a norm, zeros for a bias."""
        shape = self._shapes[name]
        if len(shape) == 1:
            return np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        rows = (shape[0] if end is None else end) - begin
        random = np.random.default_rng([zlib.crc32(name.encode()), begin])
        return random.standard_normal((rows, shape[1]), np.float32) * np.float32(0.02)

    def release(self, name: str) -> None:
        """Nothing is held."""


def measure(size: str, tensor_type: str, tokens: int, recipe: str) -> dict[str, Any]:
    """One layer of a size, in this process."""
    whole = preset(size)
    config = dataclasses.replace(whole, layers=1, vocab_size=_VOCABULARY)
    kind = TensorType[tensor_type]
    plan = TensorPlan(kind, "lloyd" if tensor_type.startswith("V") else "mse")
    plans = {spec.hf_name: plan for spec in config.tensors() if spec.role == "matrix"}
    ids = np.random.default_rng(0).integers(0, _VOCABULARY, (tokens // CHUNK, CHUNK))
    chosen = Recipe.parse(recipe)
    cols = {spec.hf_name: spec.shape[1] for spec in config.tensors() if spec.role == "matrix"}
    encoder = CalibratedEncoder(
        RandomWeights(config),  # type: ignore[arg-type]  # it has all that a layer's weights are asked for
        config,
        plans,
        ids,
        chosen,
        rotation=Rotation.of(plans, cols) if chosen.rotate else None,
        first_weights=dict.fromkeys(plans, 1.0),
    )
    started, used = time.perf_counter(), time.process_time()
    encoder.layer(0)
    seconds, processor = time.perf_counter() - started, time.process_time() - used
    weights = sum(int(np.prod(spec.shape)) for spec in config.tensors() if spec.role == "matrix")
    return {
        "type": tensor_type,
        "tokens": ids.size,
        "recipe": recipe,
        "layer_weights": weights,
        "layers": whole.layers,
        "layer_seconds": seconds,
        "layer_processor_seconds": processor,
        "all_layers_hours": seconds * whole.layers / 3600,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_OF_RSS / 1e9,
    }


def main() -> None:
    """Measures each size in a process of its own, so that each has a peak of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="+", choices=SIZES, metavar="SIZE", help=", ".join(SIZES))
    parser.add_argument("--type", default="V3", choices=[each.name for each in TensorType])
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS)
    parser.add_argument("--recipe", default="fit+rotate+gptq+descent")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    about = machine.describe()
    print(f"{about['cpu']}, {about['cores']} CPUs, {about['date']}\n")
    print("| size | weights of a layer | a layer | all layers, projected | peak memory |")
    print("|---|---|---|---|---|")
    results = {}
    for size in options.sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measure, (size, options.type, options.tokens, options.recipe))
        results[size] = row
        print(
            f"| {size} | {row['layer_weights'] / 1e6:.0f} M | {row['layer_seconds']:.0f} s "
            f"| {row['all_layers_hours']:.1f} h | {row['peak_gb']:.1f} GB |",
            flush=True,
        )
        if options.save:
            machine.save(options.save, "layer_cost", results)


if __name__ == "__main__":
    main()
