"""The text that models are calibrated on unless another one is given: prose, code and conversation.

Prose that comes with bitqwen, Python's own language reference, the sources of its standard library, and
questions about that library with its documentation as answers, in the model's chat template. Nothing in it is
reported on.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

from bitqwen.generation.chat_template import ChatTemplate

_PROSE = Path(__file__).with_name("prose.txt")

# Modules of every Python that bitqwen runs on, written by different people in different decades.
_SOURCES = (
    "argparse", "ast", "base64", "bisect", "calendar", "collections", "configparser", "copy", "csv",
    "dataclasses", "difflib", "fractions", "functools", "heapq", "json.decoder", "logging", "queue", "random",
    "shlex", "statistics", "string", "tempfile", "textwrap", "threading", "tokenize", "urllib.parse",
)  # fmt: skip
_SOURCE_CHARACTERS = 7000  # of each
_TOPICS = 180000  # characters of the language reference
_CONVERSATIONS = (
    "json.dumps", "textwrap.wrap", "heapq.merge", "bisect.insort_right", "functools.lru_cache",
    "shutil.copytree", "collections.Counter.most_common", "statistics.median", "random.sample",
    "itertools.groupby", "os.path.commonpath", "re.sub", "string.capwords", "difflib.get_close_matches",
    "pathlib.Path.relative_to", "subprocess.run", "tempfile.mkdtemp", "threading.Thread.join",
)  # fmt: skip


def default_text(chat_template: str | None) -> str:
    """The calibration text; control tokens in it are meant as such.

    Args:
        chat_template: the model's, or None for Qwen2.5's own.
    """
    # In turns, so that any even selection of chunks has some of each.
    kinds = [list(_prose()), list(_sources()), list(_conversations(chat_template))]
    most = max(len(kind) for kind in kinds)
    parts: list[tuple[float, int, str]] = []
    for number, kind in enumerate(kinds):
        parts += [(place * most / len(kind), number, part) for place, part in enumerate(kind)]
    return "\n\n".join(part for _, _, part in sorted(parts))


def _prose() -> Iterator[str]:
    own = _PROSE.read_text(encoding="utf-8").split("\n\n\n")
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    reference = "\n".join(topics[name] for name in sorted(topics))[:_TOPICS]
    pieces = max(1, _TOPICS // (4 * len(own)))
    for place, text in enumerate(own):
        yield text.strip()
        for piece in range(4):
            begin = (4 * place + piece) * pieces
            yield reference[begin : begin + pieces]


def _sources() -> Iterator[str]:
    for name in _SOURCES:
        try:
            yield inspect.getsource(importlib.import_module(name))[:_SOURCE_CHARACTERS]
        except (OSError, ImportError):  # a Python without its sources
            continue


def _conversations(chat_template: str | None) -> Iterator[str]:
    template = ChatTemplate(chat_template)
    for path in _CONVERSATIONS:
        module, _, name = path.partition(".")
        thing = _find(path)
        document = inspect.getdoc(thing) or ""
        messages = [
            {"role": "user", "content": f"What does {path} do in Python, and when would I use it?"},
            {"role": "assistant", "content": document},
        ]
        try:
            source = textwrap.dedent(inspect.getsource(thing))  # type: ignore[arg-type]
        except (OSError, TypeError):  # written in C
            source = ""
        if source:
            messages += [
                {"role": "user", "content": f"How is {name or module} implemented?"},
                {"role": "assistant", "content": f"This is its source:\n\n```python\n{source[:3000]}\n```"},
            ]
        yield template.render(messages, add_generation_prompt=False)


def _find(path: str) -> object:
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            thing = getattr(thing, part)
        return thing
    raise LookupError(path)
