"""What quantising matrices in rotated columns gives back, matrix by matrix.

Each is quantised as it is and rotated (the step `rotate` of a recipe), in the type that `--fit` gives it, by
second moments of the source's inputs in the same calibration text; the share of its outputs that is lost is
measured on texts that calibration never saw. Whole files are made by `quality.py`.

    python benchmarks/rotations.py FOLDER_OF_QUALITY NBYTES [--recipe fit] [--layers 3,14] [--tokens 8192]
        [--chunks 6] [--save FILE]
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from quality import reopened

from bitqwen.calibrate.encoder import decoded, lost_share
from bitqwen.calibrate.moments import Moments
from bitqwen.calibrate.transformer import embed, run_layer
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import TensorType
from bitqwen.measure.passages import passage
from bitqwen.quant import Recipe, Rotation, Statistics, TensorPlan
from bitqwen.texts import load_texts, packaged_names

Array = npt.NDArray[np.float32]


class Trial:
    """Matrices quantised both ways.

    Attributes:
        rows: the shares of each one's outputs that are lost, by name.
    """

    def __init__(self, recipe: str, plans: dict[str, TensorPlan]) -> None:
        self._recipe, self._plans = Recipe.parse(recipe), plans
        self.rows: dict[str, dict[str, Any]] = {}

    def run(self, name: str, matrix: Array, moments: Array, held_out: Array) -> None:
        """One matrix.

        Args:
            name: its Hugging Face name.
            matrix: float32 [rows, cols].
            moments: of its inputs in the calibration text, float32 [cols, cols].
            held_out: the same of other texts.
        """
        plan = self._plans[name]
        codebooks = {name: TensorPlan(TensorType.V2, "lloyd")}  # files without are not rotated
        rotation = Rotation.of(codebooks, {name: matrix.shape[1]})
        row: dict[str, Any] = {"type": plan.tensor_type.name}
        for kind, turned in (("plain", None), ("rotated", rotation)):
            found = self._decoded(plan, matrix, moments, turned)
            row[kind] = lost_share(matrix, found, held_out)
            row[f"{kind}, calibration"] = lost_share(matrix, found, moments)
        self.rows[name] = row
        ratio = row["rotated"] / row["plain"]
        print(f"{name} {row['type']}: {row['plain']:.4f}, rotated {ratio:.3f} of it", flush=True)

    def _decoded(self, plan: TensorPlan, matrix: Array, moments: Array, rotation: Rotation | None) -> Array:
        statistics = Statistics(np.diag(moments).copy(), moments)
        found = self._recipe.run(
            matrix, plan.tensor_type, method=plan.method, statistics=statistics, rotation=rotation
        )
        return decoded(found, plan.tensor_type, matrix.shape, rotation)


def kind_of(name: str) -> str:
    """What a matrix is in its layer: q_proj, down_proj."""
    return name.split(".")[-2]


def by_kind(rows: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    """What is lost rotated over what is lost as it is: the geometric mean of each kind of matrices."""
    logs = defaultdict(list)
    for name, row in rows.items():
        logs[kind_of(name)].append(np.log(row[f"rotated{key}"] / row[f"plain{key}"]))
    return {kind: float(np.exp(np.mean(found))) for kind, found in logs.items()}


def main() -> None:
    """Quantises and measures, layer after layer of the source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="the working folder of quality.py")
    parser.add_argument("nbytes", type=int, help="the file's size, for --fit")
    parser.add_argument("--recipe", default="fit")
    parser.add_argument("--layers", help="only these, as in 3,14")
    parser.add_argument("--tokens", type=int, default=8192, help="of the calibration text")
    parser.add_argument("--chunks", type=int, default=6, help="of each held-out text")
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    comparison = reopened(options.work, recipe=options.recipe, tokens=options.tokens, chunks=options.chunks)
    checkpoint, config = comparison.checkpoint, comparison.config
    layers = set(map(int, options.layers.split(","))) if options.layers else set(range(config.layers))
    plans = dict(comparison.budgets.fit(options.nbytes).plans)
    trial = Trial(options.recipe, plans)
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
    print("| matrix | lost, rotated over as it is |\n|---|---|")
    for kind, share in shares.items():
        print(f"| {kind} | {share:.3f} |")
    results = {
        "bytes": options.nbytes,
        "recipe": options.recipe,
        "tokens": int(calibration.size),
        "kinds": shares,
        "kinds on the calibration text": by_kind(trial.rows, ", calibration"),
        "matrices": trial.rows,
    }
    if options.save:
        machine.save(options.save, "rotations", results)


if __name__ == "__main__":
    main()
