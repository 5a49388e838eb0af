"""What a size buys: llama.cpp's types, and the best file of ours that is no larger than each of them.

Both sides start from the same neutral source (`neutral_source.py`), with the embedding stored once, and from
the same calibration text: llama-quantize gets its importance matrix, ``--fit`` the text itself. Divergence is
from the neutral source, on texts that calibration never saw; files of types that only llama.cpp reads are
run by llama.cpp. Every row is saved when it is measured, and a run goes on where another one stopped.

    python benchmarks/quality.py LLAMA_QUANTIZE [SOURCE] [--work FOLDER] [--types Q2_K,Q4_K_M] [--save FILE]
        [--tokens 16384] [--recipe fit] [--chunks 8] [--text NAME=PATH ...] [--keep]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import llama_cpp
import machine
import neutral_source
import numpy as np
import numpy.typing as npt

from bitqwen.calibrate import Calibration, fit_to_size
from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.engine import Model
from bitqwen.errors import BitqwenError
from bitqwen.gguf import TensorType
from bitqwen.measure.evaluation import TextResult, evaluate
from bitqwen.measure.passages import ScoringModel
from bitqwen.measure.reference import ReferenceFile
from bitqwen.measure.runner import measure_texts
from bitqwen.models.registry import config_from_hf
from bitqwen.texts import load_texts, packaged_names

TYPES = ("IQ2_XXS", "IQ2_M", "Q2_K", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "Q4_K_M")


class LlamaModel:
    """A file in llama.cpp, as far as measuring needs it."""

    def __init__(self, path: Path, context: int) -> None:
        self._model = llama_cpp.Llama(
            str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False, n_threads=2
        )
        self.vocab_size = self._model.n_vocab()

    def session(self) -> LlamaModel:
        """A new, empty sequence; the one before ends."""
        self._model.reset()
        return self

    def feed(
        self, ids: Sequence[int], *, logits: Literal["last", "all", "none"] = "last"
    ) -> npt.NDArray[np.float32] | None:
        """Appends ids and returns logits after them."""
        begin = self._model.n_tokens
        if ids:
            self._model.eval(ids)
        rows: npt.NDArray[np.float32] = self._model.scores[begin : begin + len(ids)]
        return None if logits == "none" else rows if logits == "all" else rows[-1:]

    def close(self) -> None:
        """Nothing is kept."""


def opened(path: Path, context: int) -> tuple[ScoringModel, str]:
    """A model in our engine, or in llama.cpp if it has types that only that reads."""
    try:
        return Model.open(path, context=context), "bitqwen"
    except BitqwenError:
        return LlamaModel(path, context), "llama.cpp"


def measured(path: Path, saved: ReferenceFile) -> dict[str, Any]:
    """Bytes, and per text divergence with its 95 % interval, agreement and perplexity."""
    passages = saved.passages()
    model, engine = opened(path, passages[0].context)
    started = time.perf_counter()
    texts = {result.name: row(result) for result in evaluate(model, passages, saved)}
    return {
        "bytes": path.stat().st_size,
        "engine": engine,
        "texts": texts,
        "seconds": time.perf_counter() - started,
    }


def row(result: TextResult) -> dict[str, float]:
    """The figures of one text."""
    found = result.divergence
    assert found is not None
    return {
        "kl": found.kl.value,
        "low": found.kl.low,
        "high": found.kl.high,
        "median": found.percentiles[50],
        "same_top": found.same_top.value,
        "perplexity": result.perplexity.value,
        "perplexity_ratio": found.perplexity_ratio,
        "tokens": found.tokens,
    }


class Comparison:
    """One run's files and settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.llama_quantize: Path = options.llama_quantize
        self.keep: bool = options.keep
        self.calibration = Calibration(tokens=options.tokens, recipe=options.recipe)
        self.neutral, self.importance = self.work / "neutral.gguf", self.work / "imatrix.gguf"
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.neutral.exists():
            neutral_source.write(options.source, self.neutral, tensor_type=TensorType.F16, seed=0)
        if not self.importance.exists():
            unused = self.work / "unused.gguf"
            fit = Calibration(tokens=options.tokens, recipe="fit", save_importance=self.importance)
            convert(self.neutral, unused, "q4_0", calibration=fit)
            unused.unlink()
        saved = self.work / "neutral.ref"
        if not saved.exists():
            texts = load_texts(options.text or packaged_names())
            measure_texts(self.neutral, texts, save=saved, chunks=options.chunks)
        self.saved = ReferenceFile(saved)

    def peer(self, name: str) -> tuple[Path, float]:
        """llama.cpp's file of a type, and the seconds it took."""
        path = self.work / f"llama.cpp-{name}.gguf"
        command: list[str | Path] = [
            self.llama_quantize,
            "--imatrix",
            self.importance,
            self.neutral,
            path,
            name,
        ]
        return path, timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

    def ours(self, name: str, nbytes: int) -> tuple[Path, float]:
        """Our file of at most as many bytes, and the seconds it took."""
        path = self.work / f"bitqwen-{name}.gguf"

        def run() -> None:
            checkpoint = open_checkpoint(self.neutral)
            config = config_from_hf(checkpoint.config, source=str(self.neutral))
            found = fit_to_size(checkpoint, config, nbytes, calibration=self.calibration)
            convert(self.neutral, path, plans=found.plans, calibration=self.calibration)

        seconds = timed(run)
        if path.stat().st_size > nbytes:
            raise SystemExit(f"{path}: {path.stat().st_size:,} bytes; {nbytes:,} were allowed")
        return path, seconds

    def compare(self, name: str) -> dict[str, Any]:
        """Both sides of one type."""
        theirs, their_seconds = self.peer(name)
        out = {"llama.cpp": {**measured(theirs, self.saved), "quantising_seconds": their_seconds}}
        ours, our_seconds = self.ours(name, theirs.stat().st_size)
        out["bitqwen"] = {**measured(ours, self.saved), "quantising_seconds": our_seconds}
        if not self.keep:
            theirs.unlink()
            ours.unlink()
        return out


def timed(run: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(name: str, both: dict[str, Any]) -> None:
    """One type's rows as Markdown."""
    for side, found in both.items():
        cells = [name if side == "llama.cpp" else "", side, f"{found['bytes'] / 1e6:.0f}"]
        for text, each in found["texts"].items():
            cells.append(f"{text} {each['kl']:.4f} ({each['low']:.4f} to {each['high']:.4f})")
            cells.append(f"{each['same_top']:.3f}")
            cells.append(f"{each['perplexity']:.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measures what is not in the results yet, type after type."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("llama_quantize", type=Path, help="llama.cpp's llama-quantize")
    parser.add_argument("source", nargs="?", default="package:qwen2.5-coder-1.5b")
    parser.add_argument("--work", type=Path, default=Path("quality"), help="a folder for files")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--recipe", default="fit")
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--text", action="append", metavar="NAME=PATH")
    parser.add_argument("--save", type=Path, default=Path("quality.json"))
    parser.add_argument("--keep", action="store_true", help="keep quantised files")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.save.exists():
        results = json.loads(options.save.read_text(encoding="utf-8"))["results"]
    comparison = Comparison(options)
    for name in options.types.split(","):
        if name not in results:
            results[name] = comparison.compare(name)
            machine.save(options.save, "quality", results)
        show(name, results[name])


if __name__ == "__main__":
    main()
