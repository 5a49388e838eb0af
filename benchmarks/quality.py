"""What a size buys: llama.cpp's types, and the best file of ours that is no larger than each of them.

Both sides start from the same neutral source (`neutral_source.py`), with the embedding stored once, and from
the same calibration text: llama-quantize gets its importance matrix, and our recipe the second moments of the
same inputs. Divergence is from the neutral source, on texts that calibration never saw, and all files run in
our engine: those of types that it does not read as the same weights in f16. Every row is saved when it is
measured, and a run goes on where another one stopped; what all files need (sensitivities, moments, matrices
that two files store alike) is made once.

    python benchmarks/quality.py LLAMA_QUANTIZE [SOURCE] [--work FOLDER] [--types Q2_K,Q4_K_M] [--save FILE]
        [--side llama.cpp|bitqwen|both] [--tokens 16384] [--chunks 6]
        [--recipe fit+rotate+gptq+descent+distil|uncalibrated] [--text NAME=PATH ...] [--keep]
    python benchmarks/quality.py --show FILE
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import kept_moments
import machine
import neutral_source
import numpy as np
import numpy.typing as npt
from kept_moments import KeptMoments, MomentsEncoder
from measured import measured

from bitqwen.calibrate import Budgets, Calibration, self_written
from bitqwen.calibrate.distillation import distil
from bitqwen.calibrate.sensitivity import Sensitivity, sensitivities
from bitqwen.checkpoints import Checkpoint, open_checkpoint
from bitqwen.convert import convert
from bitqwen.convert.calibration import Quantizer
from bitqwen.errors import ModelFileError
from bitqwen.files import atomic_file
from bitqwen.gguf import TensorType
from bitqwen.measure.reference import ReferenceFile
from bitqwen.measure.runner import measure_texts
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import DEFAULT_RECIPE, Encoded, Recipe, Rotation, TensorPlan
from bitqwen.quant.recipe import DISTIL
from bitqwen.texts import load_texts, packaged_names

# What our file's KL divergence should be at most, as a share of theirs.
WANTED = {
    "IQ2_XXS": 0.50,
    "IQ2_M": 0.60,
    "Q2_K": 0.50,
    "IQ3_XXS": 0.75,
    "Q3_K_S": 0.75,
    "Q3_K_M": 0.70,
    "Q4_K_M": 0.80,
}
_SENSITIVITY_TOKENS = 2048
# In place of a recipe: types chosen for the size, and codes fitted to no text.
UNCALIBRATED = "uncalibrated"


class Library:
    """Matrices as they have been quantised: files that store one alike share the work. For `convert`."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        self._encoder, self._folder, self._comparison = comparison.encoder, folder, comparison
        self.settings = self._encoder.settings  # what files say of it
        self.draft: Path | None = None
        self._plans: Mapping[str, TensorPlan] = {}
        self.lost_outputs: dict[str, float] = {}
        self.rotates = Recipe.parse(comparison.recipe).rotate
        self._rotation = Rotation.none()
        folder.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        rotation: Rotation,
        *,
        output: Path,
        threads: int,
    ) -> Library:
        """Begins a file."""
        self._plans, self._rotation = plans, rotation
        self.draft = output.with_suffix(".draft") if Recipe.parse(self._comparison.recipe).distil else None
        return self

    def layer(self, layer: int) -> dict[str, Encoded]:
        """The matrices of a layer."""
        prefix = f"model.layers.{layer}."
        return {name: self._get(name, plan) for name, plan in self._plans.items() if name.startswith(prefix)}

    def head(self) -> Quantizer:
        """Rows of the head; they are not kept."""
        return self._encoder.head(self._rotation.of_matrix(self._encoder.kept.head))

    def refine(self, output: Path, progress: Callable[[str], None]) -> None:
        """Distils the complete draft."""
        assert self.draft is not None
        comparison = self._comparison
        rounds = Recipe.parse(comparison.recipe).distil
        losses = distil(
            comparison.checkpoint, comparison.config, self.draft, output, comparison.ids, rounds=rounds
        )
        print(f"{output.name}, divergence by step: {' '.join(f'{each:.3f}' for each in losses)}", flush=True)

    def finish(self) -> None:
        """Everything stays for the next file."""

    def _get(self, name: str, plan: TensorPlan) -> Encoded:
        rotation = self._rotation.of_matrix(name)
        parts = [name, plan.tensor_type.name, plan.method, *(["rotated"] if rotation else [])]
        path = self._folder / f"{'-'.join(parts)}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                codebook = kept["codebook"] if "codebook" in kept.files else None
                return Encoded(kept["data"], *kept["sums"].tolist(), codebook)
        found = self._encoder.encode(name, plan, rotation)
        arrays = {"data": found.data, "sums": np.array([found.error, found.energy])}
        if found.codebook is not None:
            arrays["codebook"] = found.codebook
        with atomic_file(path) as file:
            np.savez(file, **arrays)
        return found


class Comparison:
    """One run's files and settings."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.llama_quantize: Path = options.llama_quantize
        self.keep: bool = options.keep
        self.chunks: int = options.chunks
        self.recipe: str = options.recipe
        self.neutral = self.work / "neutral.gguf"
        self.work.mkdir(parents=True, exist_ok=True)
        if not self.neutral.exists():
            neutral_source.write(options.source, self.neutral, tensor_type=TensorType.F16, seed=0)
        self.checkpoint = open_checkpoint(self.neutral)
        self.config = config_from_hf(self.checkpoint.config, source=str(self.neutral))
        self.tokens: int = options.tokens
        saved = self.work / "neutral.ref"
        if not saved.exists():
            texts = load_texts(options.text or packaged_names())
            measure_texts(self.neutral, texts, save=saved, chunks=options.chunks)
        self.saved = ReferenceFile(saved)

    @cached_property
    def sensitivity(self) -> dict[str, Sensitivity]:
        """How much each matrix matters, and what the squares of its inputs are."""
        path = self.work / "sensitivity.npz"
        if not path.exists():
            ids = Calibration(tokens=_SENSITIVITY_TOKENS).ids(self.checkpoint)
            found = {}
            seconds = timed(lambda: found.update(sensitivities(self.checkpoint, self.config, ids)))
            print(f"sensitivities: {seconds:.0f} s", flush=True)
            with atomic_file(path) as file:
                parts = {name: each._replace(importance=[]) for name, each in found.items()}
                np.savez(
                    file,
                    numbers=np.array(json.dumps(parts)),
                    **{name: each.importance for name, each in found.items()},
                )
        with np.load(path, allow_pickle=False) as kept:
            numbers = json.loads(str(kept["numbers"]))
            return {
                name: Sensitivity(nats, kept[name], energy, first)
                for name, (nats, _, energy, first) in numbers.items()
            }

    @cached_property
    def budgets(self) -> Budgets:
        """What each type costs on each matrix."""
        return Budgets(
            self.checkpoint,
            self.config,
            calibration=None if self.recipe == UNCALIBRATED else Calibration(recipe=self.recipe),
            sensitivity=self.sensitivity,
        )

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """The calibration text, int64 [chunks, chunk]: half is shipped, half the model writes itself."""
        path = self.work / "text.npy"
        if not path.exists():
            calibration = self_written.with_own_text(
                Calibration(tokens=self.tokens), str(self.neutral), folder=self.work, shipped=True
            )
            with atomic_file(path) as file:
                np.save(file, calibration.ids(self.checkpoint))
        ids: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
        return ids

    @cached_property
    def moments(self) -> KeptMoments:
        """What matrices see in the source."""
        try:
            return KeptMoments(self.work / "moments")
        except ModelFileError:
            return kept_moments.measure(self.checkpoint, self.config, self.ids, self.work / "moments")

    @cached_property
    def importance(self) -> Path:
        """The same as an importance matrix, for llama-quantize."""
        path = self.work / "imatrix.gguf"
        if not path.exists():
            self.moments.save_importance(path, self.config)
        return path

    @cached_property
    def encoder(self) -> MomentsEncoder:
        """How our matrices are quantised."""
        first_weights = {name: each.first_weight for name, each in self.sensitivity.items()}
        return MomentsEncoder(self.checkpoint, self.moments, Recipe.parse(self.recipe), first_weights)

    def calibration(self) -> Calibration | Library | None:
        """How a file is quantised, if by a text: layer by layer where matrices make up for earlier errors."""
        if self.recipe == UNCALIBRATED:
            return None
        if not Recipe.parse(self.recipe).propagate:
            recipe = "-".join(part for part in self.recipe.split("+") if not part.startswith(DISTIL))
            return Library(self, self.work / f"matrices-{recipe}")
        weights = {name: each.first_weight for name, each in self.sensitivity.items()}
        return Calibration(
            recipe=self.recipe,
            tokens=self.ids.size,
            resume=True,
            token_ids=self.ids,
            origin="shipped and self-written",
            first_weights=weights,
        )

    def peer(self, name: str) -> dict[str, Any]:
        """llama.cpp's file of a type, measured."""
        path = self.work / f"llama.cpp-{name}.gguf"
        unfinished = path.with_suffix(".part")
        command: list[str | Path] = [self.llama_quantize, "--imatrix", self.importance]
        command += [self.neutral, unfinished, name]
        seconds = None
        if not path.exists():
            seconds = timed(lambda: subprocess.run(command, check=True, capture_output=True))
            unfinished.replace(path)
        return self.row(path, seconds)

    def ours(self, nbytes: int, file: str) -> dict[str, Any]:
        """Our file of at most as many bytes, measured."""
        path = self.work / f"bitqwen-{file}-{self.recipe.replace('+', '-')}.gguf"
        started = time.perf_counter()
        found = self.budgets.fit(nbytes)
        choosing = time.perf_counter() - started  # of types; once for all files of a run
        seconds = None
        if not path.exists():
            calibration = self.calibration()
            seconds = timed(
                lambda: convert(
                    self.neutral,
                    path,
                    plans=found.plans,
                    calibration=calibration,
                    importance=found.importance,
                )
            )
        if path.stat().st_size > nbytes:
            raise SystemExit(f"{path}: {path.stat().st_size:,} bytes; {nbytes:,} were allowed")
        weights: dict[str, int] = {}
        shapes = self.checkpoint.shapes()
        for name, plan in found.plans.items():
            kind = plan.tensor_type.name
            weights[kind] = weights.get(kind, 0) + math.prod(shapes[name])
        return {
            **self.row(path, seconds),
            "choosing_seconds": choosing,
            "expected": found.loss,
            "weights": weights,
            "recipe": self.recipe,
            "types": {name: plan.tensor_type.name for name, plan in found.plans.items()},
        }

    def row(self, path: Path, seconds: float | None) -> dict[str, Any]:
        """A file's figures; it goes unless it is to be kept."""
        found = measured(path, self.saved, self.chunks, self.llama_quantize)
        found["quantising_seconds"] = seconds
        found["measured"] = machine.describe()["date"]  # a document grows over several days
        if not self.keep:
            path.unlink()
        return found


def reopened(work: Path, *, recipe: str = "fit", tokens: int = 8192, chunks: int = 6) -> Comparison:
    """The folder of a run, for other scripts: what is not in it yet is made."""
    return Comparison(
        argparse.Namespace(
            work=work,
            recipe=recipe,
            tokens=tokens,
            chunks=chunks,
            llama_quantize=None,
            keep=False,
            text=None,
            source="package:qwen2.5-coder-1.5b",
        )
    )


def timed(run: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def show(document: dict[str, Any]) -> None:
    """The rows as Markdown."""
    about = document["machine"]
    print(f"{about['cpu']}, {about['cores']} CPUs, last of all {about['date']}\n")
    files = document["results"]["files"]
    texts = [f"KL {name}" for both in files.values() for found in both.values() for name in found["texts"]]
    columns = ["no larger than", "", "MB", *dict.fromkeys(texts), "same top", "perplexity ratio", "of theirs"]
    columns += ["wanted", "measured"]
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name, both in files.items():
        theirs = both.get("llama.cpp")
        for side, found in both.items():
            texts = found["texts"]
            cells = [name if side == "llama.cpp" else "", side, f"{found['bytes'] / 1e6:.0f}"]
            cells += [
                f"{each['kl']:.3f} ({each['low']:.3f} to {each['high']:.3f})" for each in texts.values()
            ]
            for key, form in (("same_top", ".1%"), ("perplexity_ratio", ".2f")):
                cells.append(" / ".join(format(each[key], form) for each in texts.values()))
            if side == "llama.cpp" or theirs is None:
                cells += ["", ""]
            else:
                ratios = [each["kl"] / theirs["texts"][text]["kl"] for text, each in texts.items()]
                cells += [" / ".join(f"{ratio:.2f}" for ratio in ratios), f"{WANTED[name]:.2f}"]
            cells.append(found.get("measured", about["date"]))
            print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Measures what is not in the results yet, type after type."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("llama_quantize", type=Path, nargs="?", help="llama.cpp's llama-quantize")
    parser.add_argument("source", nargs="?", default="package:qwen2.5-coder-1.5b")
    parser.add_argument("--work", type=Path, default=Path("quality"), help="a folder for files")
    parser.add_argument("--types", default=",".join(WANTED))
    parser.add_argument("--side", choices=("both", "llama.cpp", "bitqwen"), default="both")
    parser.add_argument("--tokens", type=int, default=16384, help="of the calibration text")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"or {UNCALIBRATED}")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--text", action="append", metavar="NAME=PATH")
    parser.add_argument("--save", type=Path, default=Path("quality.json"))
    parser.add_argument("--keep", action="store_true", help="keep quantised files")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a saved table, and measure nothing")
    options = parser.parse_args()
    if options.show:
        show(json.loads(options.show.read_text(encoding="utf-8")))
        return
    if options.llama_quantize is None:
        parser.error("LLAMA_QUANTIZE is missing")
    results: dict[str, Any] = {"files": {}, "sensitivity": {}}
    if options.save.exists():
        results = json.loads(options.save.read_text(encoding="utf-8"))["results"]
    comparison = Comparison(options)
    ours = f"bitqwen, {options.recipe}"  # one document may hold several recipes
    for name in options.types.split(","):
        both = results["files"].setdefault(name, {})
        if "llama.cpp" not in both and options.side != "bitqwen":
            both["llama.cpp"] = comparison.peer(name)
            machine.save(options.save, "quality", results)
        if ours not in both and options.side != "llama.cpp":
            both[ours] = comparison.ours(both["llama.cpp"]["bytes"], name)
            results["sensitivity"] = {matrix: each.nats for matrix, each in comparison.sensitivity.items()}
            machine.save(options.save, "quality", results)
    show(json.loads(options.save.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
