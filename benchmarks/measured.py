"""A quantised file against a saved reference: bytes, divergence, agreement; whoever's types it has."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitqwen.engine import Model
from bitqwen.errors import UnsupportedModelError, UsageError
from bitqwen.measure.evaluation import TextResult, evaluate
from bitqwen.measure.reference import ReferenceFile


@contextmanager
def runnable(path: Path, llama_quantize: Path | None, written_as: str = "F16") -> Iterator[Path]:
    """A file that our engine runs: itself, or, of types that only llama.cpp reads, its weights in another.

    llama-quantize writes these out, which changes none of them beyond the other type's own rounding: both
    sides are then run by one engine.

    Args:
        path: the file.
        llama_quantize: the program, if there is one.
        written_as: the type; Q8_0 where many tokens are written, for speed.

    Raises:
        UsageError: it has such types and there is no llama-quantize.
    """
    try:
        Model.open(path, context=64)
    except UnsupportedModelError as error:
        if llama_quantize is None:
            raise UsageError(
                f"{path} has types that only llama.cpp reads", hint="Give its llama-quantize as well."
            ) from error
    else:
        yield path
        return
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        written = Path(folder) / "written.gguf"
        command: list[str | Path] = [llama_quantize, "--allow-requantize", path, written, written_as]
        subprocess.run(command, check=True, capture_output=True)
        yield written


def measured(
    path: Path, saved: ReferenceFile, chunks: int | None = None, llama_quantize: Path | None = None
) -> dict[str, Any]:
    """Bytes, and per text divergence with its 95 % interval, agreement and perplexity."""
    passages = [replace(each, chunks=each.chunks[:chunks]) for each in saved.passages()]
    with runnable(path, llama_quantize) as runs:
        model = Model.open(runs, context=passages[0].context, exact_head=True)
        started = time.perf_counter()
        texts = {result.name: row(result) for result in evaluate(model, passages, saved)}
        seconds = time.perf_counter() - started
    return {"bytes": path.stat().st_size, "as_f16": runs != path, "texts": texts, "seconds": seconds}


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
