"""What each step of a recipe leaves of what a fit loses of matrices' outputs, on texts not calibrated on.

For matrices of a few layers and the head, each quantised from its source with the moments that `quality.py`
keeps in its folder. The inputs are those that the source's matrices get on the held-out texts. Rows of large
matrices are sampled.

    python benchmarks/recipe_steps.py FOLDER [--layers 3,14,25] [--type V3] [--recipe fit --recipe ...]
        [--moments FOLDER ...] [--chunks 6] [--save FILE]

With moments of several texts, of each alone as well, by the recipe that is given first after the fit.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from kept_moments import KeptMoments

from bitqwen.calibrate.encoder import decoded
from bitqwen.calibrate.moments import noise_weights
from bitqwen.calibrate.transformer import embed, rms_norm, run_layer
from bitqwen.checkpoints import Checkpoint, open_checkpoint
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import TensorType
from bitqwen.measure.passages import passage
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.models.registry import config_from_hf
from bitqwen.quant import Recipe, Statistics
from bitqwen.texts import load_texts, packaged_names

Array = npt.NDArray[np.float32]

RECIPES = (
    "fit",
    "fit+gptq",
    "fit+gptq:0.01",
    "fit+gptq:0.1",
    "fit+gptq:0.6",
    "fit+gptq+descent:1",
    "fit+gptq+descent:2",
    "fit+gptq+descent:4",
)
_ROWS = 1536  # of a matrix, at most; and of a wide one, so many values
_VALUES = 1536 * 3072


def inputs(
    checkpoint: Checkpoint, config: Qwen2Config, ids: npt.NDArray[np.int64], layers: list[int], head: str
) -> dict[str, Array]:
    """The inputs of the layers' matrices and of the head, float32 [tokens, cols]; first tokens left out."""
    found: dict[str, Array] = {}
    hidden = embed(checkpoint, config, ids.ravel())
    others = np.arange(ids.size) % ids.shape[1] > 0
    for layer in range(config.layers):

        def weigh(names: tuple[str, ...], x: Array, layer: int = layer) -> Mapping[str, Array]:
            if layer in layers:
                found.update(dict.fromkeys(names, x[others]))
            return {name: checkpoint.read(name) for name in names}

        run_layer(hidden, ids.shape[1], layer, checkpoint, config, weigh)
    found[head] = rms_norm(hidden, checkpoint.read("model.norm.weight"), config.rms_norm_eps)[others]
    return found


def sampled(matrix: Array) -> Array:
    """Some of a matrix's rows, from all of it."""
    rows = min(len(matrix), _ROWS, max(1, _VALUES // matrix.shape[1]))
    return np.ascontiguousarray(matrix[np.linspace(0, len(matrix) - 1, rows).astype(int)])


def lost(rows: Array, other: Array, x: Array) -> float:
    """The share of the outputs' energy that is lost."""
    wrong, right = x @ (rows - other).T, x @ rows.T
    return float(np.vdot(wrong, wrong) / np.vdot(right, right))


def show(results: dict[str, Any]) -> None:
    """The shares as Markdown."""
    recipes = list(dict.fromkeys(each for found in results["matrices"].values() for each in found))
    print(f"| {results['type']} | " + " | ".join(recipes) + " |")
    print("|---" * (len(recipes) + 1) + "|")
    for name, found in results["matrices"].items():
        first = found[recipes[0]]["lost"]
        short = name.removeprefix("model.layers.").removesuffix(".weight")
        cells = [f"{first:.4f}", *(f"{found[each]['lost'] / first:.2f}" for each in recipes[1:])]
        print(f"| {short} | " + " | ".join(cells) + " |")


def main() -> None:
    """Quantises and measures, matrix after matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the working folder of quality.py")
    parser.add_argument("--layers", default="3,14,25")
    parser.add_argument("--type", default="V3", choices=[each.name for each in TensorType])
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--moments", type=Path, action="append", help="other folders than FOLDER's own")
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.folder / "neutral.gguf")
    config = config_from_hf(checkpoint.config, source="the neutral source")
    texts = [KeptMoments(folder) for folder in options.moments or [options.folder / "moments"]]
    kept = texts[0]
    with np.load(options.folder / "sensitivity.npz", allow_pickle=False) as file:
        first_weights = {name: parts[3] for name, parts in json.loads(str(file["numbers"])).items()}
    tokenizer = Tokenizer(checkpoint.tokenizer())
    chunks = [
        chunk
        for name, text in load_texts(packaged_names()).items()
        for chunk in passage(name, text, tokenizer, context=kept.chunk, chunks=options.chunks).chunks
    ]
    layers = [int(each) for each in options.layers.split(",")]
    seen = inputs(checkpoint, config, np.array(chunks, np.int64), layers, kept.head)
    tensor_type = TensorType[options.type]
    method = "lloyd" if options.type.startswith("V") else "mse"
    matrices: dict[str, dict[str, dict[str, float]]] = {}
    for name, x in seen.items():
        rows = sampled(checkpoint.read(name))
        checkpoint.release(name)
        found = matrices[name] = {}
        chain = list(options.recipe or RECIPES)
        tries = [(texts, chain, "")]
        if len(texts) > 1:
            alone = chain[min(1, len(chain) - 1)]
            tries += [([each], [alone], f", {each.folder.name} alone") for each in texts]
        for some, recipes, remark in tries:
            moments = KeptMoments.together(some, name)
            moments = moments.weighed(1.0 if name == kept.head else first_weights[name])
            weights = noise_weights(np.diag(moments)) if name == kept.head else np.diag(moments).copy()
            for recipe in recipes:
                started = time.perf_counter()
                encoded = Recipe.parse(recipe).run(
                    rows, tensor_type, method=method, statistics=Statistics(weights, moments)
                )
                seconds = time.perf_counter() - started
                share = lost(rows, decoded(encoded, tensor_type, rows.shape), x)
                found[recipe + remark] = {"lost": share, "seconds": seconds}
        print(name, {recipe: round(each["lost"], 5) for recipe, each in matrices[name].items()}, flush=True)
    results = {"type": options.type, "tokens": sum(each.tokens for each in texts), "matrices": matrices}
    if options.save:
        machine.save(options.save, "recipe_steps", results)
    show(results)


if __name__ == "__main__":
    main()
