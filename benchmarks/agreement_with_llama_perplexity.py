"""Whether `bitqwen eval` and llama.cpp's own `llama-perplexity` measure the same on the same files.

Both score the second half of every chunk of 512 tokens. The reference's predictions go through
llama-perplexity's file of 16-bit log-probabilities on its side, and run beside the model's on ours. The
script fails where perplexities differ by more than 0.3 % or KL divergences by more than 3 %.

    python benchmarks/agreement_with_llama_perplexity.py LLAMA_PERPLEXITY MODEL.gguf --reference OTHER.gguf
        [--text NAME[=PATH] ...] [--chunks 8] [--threads 2] [--save results.json]
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import machine

from bitqwen.measure.evaluation import TextResult
from bitqwen.measure.runner import EngineOptions, measure_texts
from bitqwen.texts import load_texts, packaged_names

CONTEXT = 512
PERPLEXITY_TOLERANCE = 0.003
DIVERGENCE_TOLERANCE = 0.03

_ATTEMPTS = 6
_NUMBER = r"\s*:\s*([-+0-9.einf]+)"
_LINES = {
    "perplexity": r"Mean PPL\(Q\)",
    "reference_perplexity": r"Mean PPL\(base\)",
    "kl": r"Mean\s+KLD",
    "same_top": r"Same top p",
}


@dataclass(frozen=True)
class Figures:
    """What is compared: perplexities, mean KL divergence in nats, share of equal top tokens."""

    perplexity: float
    reference_perplexity: float
    kl: float
    same_top: float


def parse(output: str) -> Figures:
    """The figures in what `llama-perplexity --kl-divergence` prints.

    Raises:
        ValueError: one of them is not there.
    """
    found = {}
    for name, label in _LINES.items():
        match = re.search(label + _NUMBER, output)
        if match is None:
            raise ValueError(f"llama-perplexity printed no {name}:\n{output[-2000:]}")
        found[name] = float(match[1])
    return Figures(**{**found, "same_top": found["same_top"] / 100})


def theirs(args: argparse.Namespace, text: str) -> Figures:
    """llama-perplexity's figures: the reference's predictions into a file, then the model against it."""
    with tempfile.TemporaryDirectory() as folder:
        file, base = Path(folder) / "text.txt", Path(folder) / "base.kld"
        file.write_text(text, encoding="utf-8")
        common = ["-f", str(file), "-c", str(CONTEXT), "-b", str(CONTEXT), "-t", str(args.threads)]
        common += ["--chunks", str(args.chunks), "--kl-divergence-base", str(base), "-ngl", "0"]
        _run(args.llama_perplexity, ["-m", str(args.reference), *common])
        command = ["-m", str(args.model), *common, "--kl-divergence"]
        # It sometimes ends before its log has been written out, and its last lines are missing.
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(ValueError):
                return parse(_run(args.llama_perplexity, command))
        return parse(_run(args.llama_perplexity, command))


def _run(program: Path, arguments: Sequence[str]) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def ours(result: TextResult) -> Figures:
    """The same figures of `bitqwen eval`."""
    assert result.divergence is not None
    assert result.reference_perplexity is not None
    return Figures(
        result.perplexity.value,
        result.reference_perplexity.value,
        result.divergence.kl.value,
        result.divergence.same_top.value,
    )


def agree(first: Figures, second: Figures) -> bool:
    """Whether both are within the tolerances."""
    pairs = (
        (first.perplexity, second.perplexity, PERPLEXITY_TOLERANCE),
        (first.reference_perplexity, second.reference_perplexity, PERPLEXITY_TOLERANCE),
        (first.kl, second.kl, DIVERGENCE_TOLERANCE),
    )
    return all(abs(a - b) <= tolerance * abs(b) for a, b, tolerance in pairs)


def main() -> None:
    """Measures every text with both programs, prints, saves, and says whether they agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("llama_perplexity", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--text", action="append")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    texts = load_texts(args.text or packaged_names())
    results = measure_texts(
        args.model,
        texts,
        reference=args.reference,
        context=CONTEXT,
        chunks=args.chunks,
        engine=EngineOptions(threads=args.threads),
    )
    about = machine.describe()
    print(f"{args.model.name} against {args.reference.name}, {about['cpu']}, {about['date']}\n")
    print("| text | chunks | | PPL | PPL of the reference | KL divergence | same top token |")
    print("|---|---|---|---|---|---|---|")
    rows, agreed = [], True
    for result in results:
        pair = {"bitqwen": ours(result), "llama-perplexity": theirs(args, texts[result.name])}
        for name, each in pair.items():
            print(
                f"| {result.name} | {result.chunks} | {name} | {each.perplexity:.4f} | "
                f"{each.reference_perplexity:.4f} | {each.kl:.5f} | {each.same_top:.2%} |"
            )
        agreed &= agree(*pair.values())
        rows.append({"text": result.name, "chunks": result.chunks, **{k: asdict(v) for k, v in pair.items()}})
    if args.save:
        machine.save(args.save, "agreement_with_llama_perplexity", rows)
    if not agreed:
        sys.exit("They do not agree: more than 0.3 % of a perplexity or 3 % of a KL divergence apart.")


if __name__ == "__main__":
    main()
