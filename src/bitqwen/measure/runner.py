"""Models by their files, through texts and tasks: what ``bitqwen eval`` does, for Python as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitqwen.engine import Model
from bitqwen.engine.cache import KvType
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import GGUFFile

from . import evaluation
from .evaluation import TextResult
from .passages import DEFAULT_CONTEXT, passage
from .reference import ReferenceFile
from .tasks.prompting import Prompter, Style
from .tasks.results import TaskResult
from .tasks.suite import RunOptions, Task

TaskReport = Callable[[str, int, int], None]

# Keys of a file's metadata that say what it is.
_FACTS = {"name": "general.name", "scheme": "bitqwen.scheme", "source": "bitqwen.source"}
_CHAT_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True)
class EngineOptions:
    """How models are opened: threads (``None``: one a core) and the KV cache's number format."""

    threads: int | None = None
    kv: KvType = "f16"

    def open(self, path: Path, *, context: int, sequences: int = 1) -> Model:
        """A model with room for as many sequences of a context.

        Raises:
            ModelFileError, CheckpointError, UnsupportedModelError: it cannot be read or run.
            ResourceError: it needs more memory than there is.
            UsageError: the context is longer than the model allows.
        """
        # A page of the cache may be begun by each sequence.
        positions = sequences * (context + 64)
        return Model.open(
            path,
            threads=self.threads,
            context=context,
            cache_positions=positions,
            kv=self.kv,
            exact_head=True,
        )


def about(path: Path) -> dict[str, Any]:
    """What a model file is, in JSON's types: its path, its size, and what it says of itself."""
    metadata = GGUFFile(path).metadata
    facts = {name: metadata[key] for name, key in _FACTS.items() if isinstance(metadata.get(key), str)}
    return {"path": str(path), "bytes": path.stat().st_size, **facts}


def measure_texts(
    path: Path,
    texts: Mapping[str, str],
    *,
    reference: Path | ReferenceFile | None = None,
    save: Path | None = None,
    context: int = DEFAULT_CONTEXT,
    chunks: int | None = None,
    engine: EngineOptions | None = None,
    progress: evaluation.Report | None = None,
) -> list[TextResult]:
    """Measures a model on texts.

    Args:
        path: the model's GGUF file.
        texts: by name; unused where the reference is a saved one, which has its own.
        reference: another model's file, or a saved reference.
        save: where to save this model as a reference; then no other is compared with.
        context: tokens of a chunk; a saved reference has its own.
        chunks: use only the first ones of each text.
        engine: how models are opened.
        progress: called before each chunk and after the last.

    Raises:
        ModelFileError, CheckpointError, UnsupportedModelError, ResourceError: a model cannot be used.
        UsageError: a text is too short, or the models do not share a tokenizer.
        OSError: the reference cannot be saved.
    """
    engine = engine or EngineOptions()
    tokenizer = Tokenizer.from_gguf(GGUFFile(path).metadata)
    if isinstance(reference, ReferenceFile):
        context = reference.layout.context
        passages = evaluation.saved_passages(reference, tokenizer, chunks=chunks)
    else:
        passages = [
            passage(name, text, tokenizer, context=context, chunks=chunks) for name, text in texts.items()
        ]
    if isinstance(reference, Path):
        evaluation.check_same_tokens(
            passages, Tokenizer.from_gguf(GGUFFile(reference).metadata), str(reference)
        )
    model = engine.open(path, context=context)
    if save is not None:
        return evaluation.save_reference(model, passages, save, about=about(path), progress=progress)
    other = engine.open(reference, context=context) if isinstance(reference, Path) else reference
    return evaluation.evaluate(model, passages, other, progress=progress)


def run_tasks(
    path: Path,
    tasks: Sequence[Task],
    options: RunOptions,
    *,
    style: Style | None = None,
    engine: EngineOptions | None = None,
    progress: TaskReport | None = None,
) -> list[TaskResult]:
    """Runs tasks on a model; one result a figure.

    Args:
        path: the model's GGUF file.
        tasks: what to run.
        options: how.
        style: how prompts are made; ``None`` takes the model's chat template if it has one.
        engine: how the model is opened.
        progress: called with the task's name, items done and items in all.

    Raises:
        UsageError: a task runs programs, and that is not allowed.
        ModelFileError, CheckpointError, UnsupportedModelError, ResourceError: the model cannot be used.
    """
    for task in tasks:
        task.check(options)
    engine = engine or EngineOptions()
    prompter = _prompter(path, style)
    context = max(task.context(prompter, options) for task in tasks)
    sequences = max(task.sequences(options) for task in tasks)
    model = engine.open(path, context=context, sequences=sequences)
    results: list[TaskResult] = []
    for task in tasks:

        def tell(done: int, total: int, name: str = task.name) -> None:
            if progress is not None:
                progress(name, done, total)

        results += task.run(model, prompter, options, tell)
    return results


def _prompter(path: Path, style: Style | None) -> Prompter:
    metadata = GGUFFile(path).metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    source = metadata.get(_CHAT_TEMPLATE)
    if style == "completion" or (style is None and source is None):
        return Prompter(tokenizer, None)
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
    special = {name: tokenizer.decode([token]) for name, token in ids.items() if token is not None}
    return Prompter(tokenizer, ChatTemplate(source, special_tokens=special))
