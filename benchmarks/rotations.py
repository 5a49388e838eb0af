"""What turning weights by Hadamard matrices before they are rounded gives back, of matrices and of a file.

Blocks of 128 columns, and the inputs that they meet, are turned by a Hadamard matrix with random signs,
which leaves products as they are and spreads what stands out. Each matrix is quantised as it is and turned,
in the type that `--fit` gives it, with second moments of the source's inputs in the same calibration text;
the share of its outputs that is lost is measured on texts that calibration never saw. With `--whole` files
are written too, as the weights that they stand for in f16 and turned back, and their divergence from the
source measured: nothing turned, everything, and the kinds of matrices that lose at least 3 % less turned on
the calibration text.

    python benchmarks/rotations.py FOLDER_OF_QUALITY NBYTES [--recipe fit] [--layers 3,14] [--whole]
        [--tokens 8192] [--chunks 6] [--save FILE]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from measured import measured
from quality import Comparison, reopened

from bitqwen.calibrate.backward import head_name
from bitqwen.calibrate.encoder import decoded, lost_share
from bitqwen.calibrate.moments import Moments
from bitqwen.calibrate.transformer import embed, run_layer
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile
from bitqwen.gguf.rewrite import rewrite
from bitqwen.measure.passages import passage
from bitqwen.quant import Recipe, Statistics, TensorPlan
from bitqwen.texts import load_texts, packaged_names

Array = npt.NDArray[np.float32]

BLOCK = 128
KEPT_FROM = 0.97  # of what is lost: turned matrices must lose less than that


class Rotation:
    """Blocks of columns turned by a Hadamard matrix with random signs; all of them one matrix R, R R' = 1."""

    def __init__(self, cols: int, seed: int = 0) -> None:
        hadamard = np.ones((1, 1), np.float32)
        while len(hadamard) < BLOCK:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], (cols // BLOCK, BLOCK, 1))
        self._blocks = np.asarray(signs * hadamard / np.sqrt(BLOCK), np.float32)  # [blocks, 128, 128]

    def turned(self, rows: Array) -> Array:
        """Rows times R, float32 [rows, cols]."""
        return self._by(rows, self._blocks)

    def back(self, rows: Array) -> Array:
        """Rows times R'."""
        return self._by(rows, self._blocks.transpose(0, 2, 1))

    def moments(self, moments: Array) -> Array:
        """Those of turned inputs: R' M R, float32 [cols, cols]."""
        return self.turned(np.ascontiguousarray(self.turned(moments).T))

    def _by(self, rows: Array, blocks: Array) -> Array:
        parts = rows.reshape(len(rows), -1, BLOCK).transpose(1, 0, 2)
        return np.ascontiguousarray(np.matmul(parts, blocks).transpose(1, 0, 2)).reshape(rows.shape)


class Trial:
    """Matrices quantised both ways."""

    def __init__(self, recipe: str, plans: dict[str, TensorPlan], keep: bool) -> None:
        self._recipe, self._plans, self._keep = Recipe.parse(recipe), plans, keep
        self.plain: dict[str, npt.NDArray[np.float16]] = {}
        self.turned: dict[str, npt.NDArray[np.float16]] = {}
        self.rows: dict[str, dict[str, Any]] = {}

    def run(self, name: str, matrix: Array, moments: Array, held_out: Array) -> None:
        """One matrix.

        Args:
            name: its Hugging Face name.
            matrix: float32 [rows, cols].
            moments: of its inputs in the calibration text, float32 [cols, cols].
            held_out: the same of other texts.
        """
        plan, rotation = self._plans[name], Rotation(matrix.shape[1])
        kinds = {"plain": self._decoded(plan, matrix, moments)}
        turned = self._decoded(plan, rotation.turned(matrix), rotation.moments(moments))
        kinds["turned"] = rotation.back(turned)
        row: dict[str, Any] = {"type": plan.tensor_type.name}
        for kind, found in kinds.items():
            row[kind] = lost_share(matrix, found, held_out)
            row[f"{kind}, calibration"] = lost_share(matrix, found, moments)
            if self._keep:
                getattr(self, kind)[name] = found.astype(np.float16)
        self.rows[name] = row
        ratio = row["turned"] / row["plain"]
        print(f"{name} {row['type']}: {row['plain']:.4f}, turned {ratio:.3f} of it", flush=True)

    def _decoded(self, plan: TensorPlan, matrix: Array, moments: Array) -> Array:
        statistics = Statistics(np.diag(moments).copy(), moments)
        found = self._recipe.run(matrix, plan.tensor_type, method=plan.method, statistics=statistics)
        return decoded(found, plan.tensor_type, matrix.shape)


def kind_of(name: str) -> str:
    """What a matrix is in its layer: q_proj, down_proj."""
    return name.split(".")[-2]


def by_kind(rows: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    """What is lost turned over what is lost as it is: the geometric mean of each kind of matrices."""
    logs = defaultdict(list)
    for name, row in rows.items():
        logs[kind_of(name)].append(np.log(row[f"turned{key}"] / row[f"plain{key}"]))
    return {kind: float(np.exp(np.mean(found))) for kind, found in logs.items()}


def write_and_measure(comparison: Comparison, weights: dict[str, npt.NDArray[np.float16]]) -> dict[str, Any]:
    """The neutral source with these weights in f16, measured, and removed."""
    path = comparison.work / "rotations.gguf"
    names = {spec.gguf_name: spec.hf_name for spec in comparison.config.tensors()}
    rewrite(
        GGUFFile(comparison.neutral), path, changed=lambda _, gguf_name: weights.get(names.get(gguf_name, ""))
    )
    found = measured(path, comparison.saved, comparison.chunks)
    path.unlink()
    return found["texts"]


def main() -> None:
    """Quantises and measures, layer after layer of the source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="the working folder of quality.py")
    parser.add_argument("nbytes", type=int, help="the file's size, for --fit")
    parser.add_argument("--recipe", default="fit")
    parser.add_argument("--layers", help="only these, as in 3,14")
    parser.add_argument("--whole", action="store_true", help="write and measure files of all layers")
    parser.add_argument("--tokens", type=int, default=8192, help="of the calibration text")
    parser.add_argument("--chunks", type=int, default=6, help="of each held-out text")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    comparison = reopened(options.work, recipe=options.recipe, tokens=options.tokens, chunks=options.chunks)
    checkpoint, config = comparison.checkpoint, comparison.config
    layers = set(map(int, options.layers.split(","))) if options.layers else set(range(config.layers))
    if options.whole and len(layers) < config.layers:
        parser.error("--whole takes all layers")
    plans = dict(comparison.budgets.fit(options.nbytes).plans)
    trial = Trial(options.recipe, plans, options.whole)
    tokenizer = Tokenizer(checkpoint.tokenizer())
    chunk = comparison.ids.shape[1]
    calibration = comparison.ids[: options.tokens // chunk]
    held_out = np.array(
        [
            each
            for name, text in load_texts(packaged_names()).items()
            for each in passage(name, text, tokenizer, context=chunk, chunks=options.chunks).chunks
        ]
    )
    streams = [embed(checkpoint, config, ids.ravel()) for ids in (held_out, calibration)]
    seen: dict[str, Moments] = {}

    for layer in range(max(layers) + 1):

        def note(names: tuple[str, ...], x: Array, layer: int = layer) -> dict[str, Array]:
            weights = {name: checkpoint.read(name) for name in names}
            if layer in layers:
                seen.update(dict.fromkeys(names, Moments.of(x, chunk)))
            return weights

        def quantise(names: tuple[str, ...], x: Array, layer: int = layer) -> dict[str, Array]:
            weights = {name: checkpoint.read(name) for name in names}
            if layer in layers:
                moments, others = Moments.of(x, chunk), seen[names[0]]
                for name, matrix in weights.items():
                    weight = comparison.sensitivity[name].first_weight
                    plain = (others.rest + weight * (others.first.T @ others.first)) / others.others
                    trial.run(name, matrix, moments.weighed(weight), plain)
                    checkpoint.release(name)
            return weights

        for stream, weigh in zip(streams, (note, quantise), strict=True):
            run_layer(stream, chunk, layer, checkpoint, config, weigh)
        seen.clear()

    shares = by_kind(trial.rows, "")
    on_calibration = by_kind(trial.rows, ", calibration")
    chosen = {kind for kind, share in on_calibration.items() if share < KEPT_FROM}
    results: dict[str, Any] = {
        "bytes": options.nbytes,
        "recipe": options.recipe,
        "tokens": int(calibration.size),
        "kinds": shares,
        "kinds on the calibration text": on_calibration,
        "chosen": sorted(chosen),
        "matrices": trial.rows,
    }
    print("| matrix | lost, turned over as it is |\n|---|---|")
    for kind, share in shares.items():
        print(f"| {kind} | {share:.3f} |")
    if options.whole:
        name = head_name(checkpoint, config)
        statistics = Statistics(comparison.sensitivity[name].importance)
        plan, rows = plans[name], checkpoint.read(name)
        encoded = Recipe.parse("fit").run(rows, plan.tensor_type, method=plan.method, statistics=statistics)
        head = {name: decoded(encoded, plan.tensor_type, rows.shape).astype(np.float16)}
        mixed = {
            name: trial.turned[name] if kind_of(name) in chosen else found
            for name, found in trial.plain.items()
        }
        sides = {"nothing": trial.plain, "everything": trial.turned, "chosen kinds": mixed}
        results["files"] = {}
        for side, weights in sides.items():
            found = results["files"][side] = write_and_measure(comparison, weights | head)
            divergences = ", ".join(f"{text} {each['kl']:.4f}" for text, each in found.items())
            print(f"{side}: {divergences}", flush=True)
    if options.save:
        machine.save(options.save, "rotations", results)


if __name__ == "__main__":
    main()
