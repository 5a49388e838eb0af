"""Peak memory and speed of converting a checkpoint of Qwen2.5-3B's shape (random weights, bf16, sharded).

    python benchmarks/conversion_memory.py [--scheme w4] [--layers 36] [--save results.json]

The conversion runs in a process of its own; what that process takes above a bare interpreter with
bitqwen's modules imported is printed.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import machine
import numpy as np

from bitqwen.models.qwen2 import Qwen2Config

_SHARD_BYTES = 2_000_000_000
_CHILD = """
import resource, sys, time
from bitqwen.convert import convert
import bitqwen.checkpoints.huggingface
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
report = convert(sys.argv[1], sys.argv[2], sys.argv[3])
print(before, peak(), time.perf_counter() - start, report.nbytes)
"""


def config_3b(layers: int) -> Qwen2Config:
    """Qwen2.5-3B's hyperparameters."""
    return Qwen2Config.from_hf(
        {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
        }
    )


def write_checkpoint(folder: Path, config: Qwen2Config) -> int:
    """A sharded bf16 checkpoint of random weights and a tokenizer without merges; returns its bytes."""
    rng = np.random.default_rng(0)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for spec in config.tensors():
        if spec.optional:
            continue
        nbytes = 2 * int(np.prod(spec.shape))
        if size + nbytes > _SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((spec.hf_name, spec.shape))
        size += nbytes
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {}, 0
        for tensor, shape in tensors:
            nbytes = 2 * int(np.prod(shape))
            header[tensor] = {
                "dtype": "BF16",
                "shape": list(shape),
                "data_offsets": [offset, offset + nbytes],
            }
            offset += nbytes
            weight_map[tensor] = name
        total += offset
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape in tensors:
                # The upper halves of normal float32 numbers, as bf16 has them.
                for begin in range(0, int(np.prod(shape)), 1 << 22):
                    count = min(1 << 22, int(np.prod(shape)) - begin)
                    values = rng.standard_normal(count, np.float32) * np.float32(0.02)
                    out.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    vocabulary = {f"token{i}": i for i in range(151665)}
    document = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return total


def main() -> None:
    """Builds the checkpoint, converts it in a process of its own, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scheme", default="w4")
    parser.add_argument("--layers", type=int, default=36, help="36 is the 3B model; fewer is quicker")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source_bytes = write_checkpoint(folder, config_3b(args.layers))
        command = [sys.executable, "-c", _CHILD, str(folder), str(folder / "out.gguf"), args.scheme]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    before, peak, seconds, nbytes = map(float, result.stdout.split())
    row = {
        "scheme": args.scheme,
        "layers": args.layers,
        "checkpoint_gb": source_bytes / 1e9,
        "file_gb": nbytes / 1e9,
        "peak_above_interpreter_gb": (peak - before) / 1e9,
        "seconds": seconds,
        "mb_per_s": source_bytes / 1e6 / seconds,
    }
    about = machine.describe()
    print(f"{about['cpu']}, {about['cores']} cores, {about['date']}")
    print(
        f"{row['checkpoint_gb']:.2f} GB bf16 -> {row['file_gb']:.2f} GB {args.scheme}: {seconds:.0f} s "
        f"({row['mb_per_s']:.0f} MB/s), peak {row['peak_above_interpreter_gb']:.2f} GB above Python's"
    )
    if args.save:
        machine.save(args.save, "conversion_memory", row)


if __name__ == "__main__":
    main()
