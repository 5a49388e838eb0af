"""What a codebook of triples, 32 mirrored points for three weights (1.67 bits), would give to `--fit`.

No file has such a type. Vectors of either length are fitted here by the same plain Lloyd's algorithm, with a
scale every 120 weights and the importance of columns: triples with 32 points, of which 16 are stored, and
pairs with 16, as V2 has them. What triples lose over what pairs do says what the type would lose where V2's
loss is known, and the choice of types is made with it and without.

    python benchmarks/triples.py FOLDER_OF_QUALITY [NBYTES ...] [--save FILE]
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from quality import reopened

from bitqwen.calibrate.moments import noise_weights
from bitqwen.gguf import TensorType
from bitqwen.quant import TensorPlan
from bitqwen.quant.budget import Option, allocate

Array = npt.NDArray[np.float32]

BLOCK = 120  # weights of a scale; of pairs and of triples a whole number
_ROUNDS = 25
_ROWS = 64  # of a matrix
TRIPLE_BITS = 5 / 3 + 16 / BLOCK
PAIR_BITS = 4 / 2 + 16 / BLOCK
TRIPLES = TensorPlan(TensorType.V2, "triples")  # stands in for a type that there is not


def lost(rows: Array, weights: Array, length: int, points: int, *, mirrored: bool, seed: int = 0) -> float:
    """The weighted squared error that Lloyd's algorithm leaves, as a share of the weighted energy.

    Args:
        rows: float32 [rows, cols]; columns beyond whole blocks are left out.
        weights: what the error of a column weighs, float32 [cols].
        length: weights of a vector.
        points: of the codebook; of a mirrored one, those that are stored.
        mirrored: whether a point stands for its opposite too.
        seed: of the first codebook.
    """
    cols = rows.shape[1] // BLOCK * BLOCK
    x = rows[:, :cols].reshape(-1, BLOCK // length, length)  # [blocks, vectors, length]
    h = np.broadcast_to(weights[:cols], rows[:, :cols].shape).reshape(x.shape)
    scales = np.sqrt(np.square(x).mean((1, 2), keepdims=True)) + np.float32(1e-12)
    random = np.random.default_rng(seed)
    flat = (x / scales).reshape(-1, length)
    book = flat[random.choice(len(flat), points, replace=False)]
    for _ in range(_ROUNDS):
        every = np.concatenate([book, -book]) if mirrored else book
        gain = scales * ((h * x) @ every.T)
        cost = np.square(scales) * (h @ np.square(every).T) - 2 * gain
        code = cost.argmin(2)
        near = every[code]
        top, bottom = (h * x * near).sum((1, 2)), (h * np.square(near)).sum((1, 2))
        scales = (top / np.maximum(bottom, 1e-20)).astype(np.float32)[:, None, None]
        sign = np.where(code >= points, -1, 1)[..., None] if mirrored else 1
        place = (code % points).ravel()
        up, down = ((sign * h * x * scales), (h * np.square(scales)))
        for i in range(length):
            total = np.bincount(place, np.broadcast_to(down[..., i], code.shape).ravel(), points)
            found = np.bincount(place, up[..., i].ravel(), points)
            book[:, i] = np.where(total > 0, found / np.maximum(total, 1e-20), book[:, i])
    error = (h * np.square(x - scales * near)).sum(dtype=np.float64)
    return float(error / (h * np.square(x)).sum(dtype=np.float64))


def main() -> None:
    """Measures the ratio on every matrix, then chooses types both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="the working folder of quality.py")
    parser.add_argument("nbytes", type=int, nargs="*", default=[450_000_000, 480_000_000, 511_000_000])
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    comparison = reopened(options.work)
    shapes = comparison.checkpoint.shapes()
    budgets = comparison.budgets
    triples: dict[str, list[Option]] = {}
    ratios = {}
    for name, ways in budgets.options.items():
        rows, cols = shapes[name]
        pair = next((each for each in ways if each.plan.tensor_type is TensorType.V2), None)
        if pair is None:
            triples[name] = ways
            continue
        begin = (rows - _ROWS) // 2
        some = comparison.checkpoint.read(name, begin, begin + _ROWS)
        weights = noise_weights(comparison.sensitivity[name].importance)
        both = (
            lost(some, weights, 3, 16, mirrored=True),
            lost(some, weights, 2, 16, mirrored=False),
        )
        ratios[name] = both[0] / both[1]
        nbytes = math.ceil(rows * cols * TRIPLE_BITS / 8)
        triples[name] = [*ways, Option(TRIPLES, nbytes, pair.loss * ratios[name])]
    ratio = math.exp(np.mean(np.log(list(ratios.values()))))
    print(f"triples of {TRIPLE_BITS:.3f} bits lose {ratio:.3f} times what pairs of {PAIR_BITS:.3f} do")
    results: dict[str, Any] = {"ratio": ratio, "ratios": ratios, "sizes": {}}
    print("| bytes | expected loss | with triples | matrices in triples | of all weights |")
    print("|---|---|---|---|---|")
    for nbytes in options.nbytes:
        room = budgets.room(nbytes)
        without, found = allocate(budgets.options, room), allocate(triples, room)
        weights_of = {name: math.prod(shapes[name]) for name in triples}
        chosen = [name for name, plan in found.plans.items() if plan == TRIPLES]
        share = sum(weights_of[name] for name in chosen) / sum(weights_of.values())
        results["sizes"][nbytes] = {
            "loss": without.loss,
            "with_triples": found.loss,
            "matrices": len(chosen),
            "share": share,
        }
        print(f"| {nbytes:,} | {without.loss:.3f} | {found.loss:.3f} | {len(chosen)} | {share:.0%} |")
    if options.save:
        machine.save(options.save, "triples", results)


if __name__ == "__main__":
    main()
