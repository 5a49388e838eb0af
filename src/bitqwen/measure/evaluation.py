"""Texts through a model, and a reference beside it: the whole of a measurement."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.errors import UsageError
from bitqwen.generation.tokenizer import Tokenizer

from ..files import atomic_file
from . import divergence, perplexity, reference, truncation
from .distributions import distribution
from .divergence import Divergence, TokenScores
from .passages import Passage, ScoringModel, logit_rows
from .perplexity import Perplexity
from .reference import ReferenceFile

# A chunk ends amid a word, and what follows decides how its last tokens would be cut.
_UNSURE_TOKENS = 16


@dataclass(frozen=True)
class TextResult:
    """What was measured on one text.

    Attributes:
        name: what the text is called, usually its domain.
        sha256: of the text in UTF-8, hexadecimal.
        context: tokens of a chunk.
        chunks: how many were scored.
        perplexity: the model's.
        reference_perplexity: the reference's, if there is one.
        divergence: from the reference, if there is one.
        seconds: how long it took.
    """

    name: str
    sha256: str
    context: int
    chunks: int
    perplexity: Perplexity
    reference_perplexity: Perplexity | None
    divergence: Divergence | None
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a measurement is: the text under way, chunks done and chunks in all."""

    text: str
    done: int
    total: int


Report = Callable[[Progress], None]


def evaluate(
    model: ScoringModel,
    passages: Sequence[Passage],
    other: ScoringModel | ReferenceFile | None = None,
    *,
    progress: Report | None = None,
) -> list[TextResult]:
    """Measures a model on texts: perplexity, and divergence from a reference.

    Memory: 64 rows of logits a model, 39 MB each for Qwen2.5, and a few rows in float64.

    Args:
        model: the model.
        passages: the texts; with a saved reference, that one's own (:func:`saved_passages`).
        other: the reference, as a model or as saved.
        progress: called before each chunk and after the last.

    Raises:
        CheckpointError: a model's logits are not finite.
        ModelFileError: the saved reference is damaged.
        UsageError: the models do not share a vocabulary, or the texts are not the saved reference's.
        ContextLengthError: a model's context is shorter than a chunk.
    """
    steps = _Steps(passages, progress)
    results = []
    for place, passage in enumerate(passages):
        started = time.perf_counter()
        if other is None:
            nll = np.stack([perplexity.chunk_nll(model, passage, chunk) for chunk in steps.of(passage)])
            results.append(_result(passage, nll, started))
            continue
        if isinstance(other, ReferenceFile):
            scores = _against_saved(model, passage, other, place, steps)
        else:
            scores = [divergence.compare_chunk(model, other, passage, chunk) for chunk in steps.of(passage)]
        joined = divergence.join(scores)
        results.append(_result(passage, joined.nll, started, joined, saved=isinstance(other, ReferenceFile)))
    steps.end()
    return results


def save_reference(
    model: ScoringModel,
    passages: Sequence[Passage],
    path: str | PathLike[str],
    *,
    about: Mapping[str, Any],
    top: int = reference.DEFAULT_TOP,
    samples: int = reference.DEFAULT_SAMPLES,
    seed: int = 0,
    progress: Report | None = None,
) -> list[TextResult]:
    """Saves a model's predictions over texts, for other models to be compared with; measures perplexity.

    Args:
        model: the reference.
        passages: the texts, of one context and one tokenizer.
        path: the file to write.
        about: what the model is, as JSON has it; kept in the file.
        top: likeliest tokens saved of each distribution.
        samples: tokens drawn from the others.
        seed: of that draw.
        progress: called before each chunk and after the last.

    Raises:
        CheckpointError: the model's logits are not finite.
        UsageError: an argument is out of range.
        OSError: the file cannot be written.
    """
    layout = reference.layout_for(passages, about, top=top, samples=samples)
    random = np.random.default_rng(seed)
    steps = _Steps(passages, progress)
    results = []
    with atomic_file(Path(path)) as file:
        reference.write_header(file, layout)
        for passage in passages:
            started = time.perf_counter()
            nll = np.empty((len(passage.chunks), passage.rows))
            for chunk in steps.of(passage):
                rows = np.zeros(passage.rows, truncation.row_type(layout.top, layout.samples))
                _record(model, passage, chunk, rows, random)
                reference.write_chunk(file, passage.chunks[chunk], rows)
                nll[chunk] = -rows["target"].astype(np.float64)
            results.append(_result(passage, nll, started))
    steps.end()
    return results


def saved_passages(saved: ReferenceFile, tokenizer: Tokenizer, *, chunks: int | None = None) -> list[Passage]:
    """A saved reference's texts, if a tokenizer reads them as the reference's did.

    Args:
        saved: the reference.
        tokenizer: that of the model to be compared.
        chunks: use only the first ones of each text; ``None`` for all.

    Raises:
        ModelFileError: the file is damaged.
        UsageError: the tokenizer is another one.
    """
    passages = saved.passages()
    check_same_tokens(passages, tokenizer, str(saved.path))
    return [dataclasses.replace(each, chunks=each.chunks[:chunks]) for each in passages]


def check_same_tokens(passages: Sequence[Passage], tokenizer: Tokenizer, what: str) -> None:
    """Refuses a tokenizer that does not read texts as another one did: nothing could be compared.

    Args:
        passages: the texts, as the other one read them.
        tokenizer: the one in question.
        what: which model or file the two differ in, for the message.

    Raises:
        UsageError: it does not.
    """
    for passage in passages:
        ids = passage.chunks.ravel().tolist()
        if tokenizer.add_bos:
            # Each chunk's first token was replaced; what follows the first is whole.
            ids = passage.chunks[0, 1:].tolist()
        again = tokenizer.encode(tokenizer.decode(ids)) if max(ids) < tokenizer.vocab_size else []
        sure = max(len(ids) - _UNSURE_TOKENS, 1)
        if again[:sure] != ids[:sure]:
            raise UsageError(
                f"The model and {what} have different tokenizers, so their predictions cannot be compared.",
                hint="Compare models of one family.",
            )


def as_json(result: TextResult) -> dict[str, Any]:
    """A result in JSON's types; numbers that JSON cannot express are null."""
    out: dict[str, Any] = _plain(dataclasses.asdict(result))
    if result.divergence is not None:
        out["divergence"]["perplexity_ratio"] = result.divergence.perplexity_ratio
    return out


def _against_saved(
    model: ScoringModel, passage: Passage, saved: ReferenceFile, place: int, steps: _Steps
) -> list[TokenScores]:
    scores = []
    # The passage may be the beginning of the saved text only.
    for chunk, kept in zip(steps.of(passage), saved.chunks(place), strict=False):
        if not np.array_equal(kept.tokens, passage.chunks[chunk]):
            raise UsageError(
                f"The text {passage.name!r} is not the one that the saved reference was made on.",
                hint="Take the reference's own texts.",
            )
        scores.append(divergence.compare_saved_chunk(model, passage, chunk, kept.rows))
    return scores


def _record(
    model: ScoringModel, passage: Passage, chunk: int, rows: npt.NDArray[Any], random: np.random.Generator
) -> None:
    targets = passage.targets(chunk).tolist()
    for i, (logits, target) in enumerate(zip(logit_rows(model, passage, chunk), targets, strict=True)):
        truncation.truncate(distribution(logits), target, rows[i : i + 1].reshape(()), random)


def _result(
    passage: Passage,
    nll: npt.NDArray[np.float64],
    started: float,
    scores: TokenScores | None = None,
    *,
    saved: bool = False,
) -> TextResult:
    return TextResult(
        name=passage.name,
        sha256=passage.sha256,
        context=passage.context,
        chunks=len(passage.chunks),
        perplexity=perplexity.summarize(nll),
        reference_perplexity=None if scores is None else perplexity.summarize(scores.reference_nll),
        divergence=None if scores is None else divergence.summarize(scores, truncated=saved),
        seconds=time.perf_counter() - started,
    )


class _Steps:
    """Counts chunks over all texts, and reports them."""

    def __init__(self, passages: Sequence[Passage], report: Report | None) -> None:
        self._total = sum(len(passage.chunks) for passage in passages)
        self._report = report
        self._done = 0
        self._text = ""

    def of(self, passage: Passage) -> Any:
        """The numbers of a passage's chunks."""
        self._text = passage.name
        for chunk in range(len(passage.chunks)):
            self._tell()
            yield chunk
            self._done += 1

    def end(self) -> None:
        """Everything is measured."""
        self._tell()

    def _tell(self) -> None:
        if self._report is not None:
            self._report(Progress(self._text, self._done, self._total))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            f"{key:g}" if isinstance(key, int | float) else key: _plain(item) for key, item in value.items()
        }
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
