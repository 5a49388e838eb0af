"""A calibration as it is asked for: which text, how much of it, and the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import Checkpoint
from bitqwen.convert.calibration import LayerEncoder
from bitqwen.errors import UsageError
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.models.qwen2 import Qwen2Config
from bitqwen.quant import DEFAULT_RECIPE, Recipe, Rotation, TensorPlan
from bitqwen.texts import held_out_in

from .backward import first_token_weights
from .encoder import CalibratedEncoder
from .imatrix import ImportanceEncoder, load
from .texts import default_text

# Tokens that see each other; as many as a chunk has when models are measured.
CHUNK = 512
DEFAULT_TOKENS = 16384
_MOST_TOKENS = 1 << 20
_WEIGHED_TOKENS = 2048  # that say how much first tokens count


@dataclass(frozen=True)
class Calibration:
    """Quantises with the statistics of a text; for :func:`bitqwen.convert.convert`.

    Memory: the text's activations, ``tokens`` times the model's MLP width in float32, and for recipes of
    more than a fit three square matrices of that width; to distil, the heads of both models in float32, and
    up to 2 GiB of what layers compute.

    Attributes:
        text: what to calibrate on; None for a mix of prose, code and conversation that comes with
            bitqwen and with Python: the half of the command line's default that the model does not write.
        tokens: how many of its tokens to use.
        recipe: how each matrix is quantised; see :class:`bitqwen.quant.Recipe`.
        chunk: tokens that see each other.
        resume: whether finished layers are kept beside the output until it is complete, so that an
            interrupted conversion goes on where it was.
        importance: an importance matrix (imatrix) in GGUF, of llama.cpp or of bitqwen, that takes the place
            of a text: matrices are fitted with it, and rotated if the recipe says so.
        save_importance: where to write the importance matrix of the text.
        token_ids: the text as token ids, int64 [chunks, chunk], in place of text; those that the model
            wrote itself, see :mod:`bitqwen.calibrate.self_written`.
        origin: what the file's metadata says of token_ids.
        first_weights: how much a chunk's first token counts for each matrix, where it was measured before:
            :attr:`bitqwen.calibrate.Fitting.first_weights`.
    """

    text: str | None = None
    tokens: int = DEFAULT_TOKENS
    recipe: str = DEFAULT_RECIPE
    chunk: int = CHUNK
    resume: bool = False
    importance: Path | None = None
    save_importance: Path | None = None
    token_ids: npt.NDArray[np.int64] | None = field(default=None, compare=False)
    origin: str = "self-written"
    first_weights: Mapping[str, float] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Checks the number of tokens.

        Raises:
            UsageError: too few or too many.
        """
        if not self.chunk <= self.tokens <= _MOST_TOKENS:
            raise UsageError(
                f"{self.tokens} calibration tokens; allowed: {self.chunk} to {_MOST_TOKENS}",
                hint="16384 suffice for a fit; sweeps learn from every one there is.",
            )

    @property
    def settings(self) -> dict[str, str]:
        """What the file's metadata says of it."""
        if self.importance is not None:
            return {"calibration": "imatrix", "recipe": "fit+rotate" if self.rotates else "fit"}
        if self.token_ids is not None:
            return {
                "calibration": self.origin,
                "calibration_tokens": str(self.token_ids.size),
                "recipe": self.recipe,
            }
        source = "shipped" if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()
        return {"calibration": source, "calibration_tokens": str(self.tokens), "recipe": self.recipe}

    @property
    def rotates(self) -> bool:
        """Whether matrices are rotated where that helps."""
        return Recipe.parse(self.recipe).rotate

    def ids(self, checkpoint: Checkpoint) -> npt.NDArray[np.int64]:
        """The text's token ids: int64 [chunks, chunk], taken evenly from all of it.

        Raises:
            UsageError: the text is too short, or one that results are reported on.
        """
        if self.token_ids is not None:
            return self.token_ids
        text = default_text(checkpoint.chat_template) if self.text is None else self.text
        known = held_out_in(text)
        if known:
            raise UsageError(
                f"the calibration text holds what results are reported on ({', '.join(known)})",
                hint="Calibrate on another text: measured on the same one, a model seems better than it is.",
            )
        tokenizer = Tokenizer(checkpoint.tokenizer())
        ids = np.array(tokenizer.encode(text, allow_special=self.text is None), np.int64)
        chunks = len(ids) // self.chunk
        if chunks < 1:
            raise UsageError(
                f"the calibration text has {len(ids)} tokens; {self.chunk} are the least",
                hint="Give a longer text: some 100 KB of what the model will be used for.",
            )
        whole = ids[: chunks * self.chunk].reshape(chunks, self.chunk)
        wanted = min(chunks, self.tokens // self.chunk)
        return np.ascontiguousarray(whole[np.arange(wanted) * chunks // wanted])

    def start(
        self,
        checkpoint: Checkpoint,
        config: Qwen2Config,
        plans: Mapping[str, TensorPlan],
        rotation: Rotation,
        *,
        output: Path,
        threads: int,
    ) -> LayerEncoder:
        """Begins a conversion; see :class:`bitqwen.convert.calibration.Calibration`.

        Raises:
            UsageError: the text or the recipe will not do.
            ModelFileError: the importance matrix will not.
        """
        if self.importance is not None:
            found = load(self.importance)
            return ImportanceEncoder(checkpoint, config, plans, found, rotation, threads=threads)
        ids = self.ids(checkpoint)
        recipe = Recipe.parse(self.recipe)
        first_weights = self.first_weights
        if recipe.needs_moments and first_weights is None:
            some = ids[: max(1, _WEIGHED_TOKENS // self.chunk)]
            first_weights = first_token_weights(checkpoint, config, some)
        return CalibratedEncoder(
            checkpoint,
            config,
            plans,
            ids,
            recipe,
            rotation=rotation,
            first_weights=first_weights,
            draft=output.with_name(f".{output.name}.draft"),
            resume=output.with_name(f".{output.name}.layers") if self.resume else None,
            save_importance=self.save_importance,
            threads=threads,
        )
