"""Text that the model itself writes, to calibrate on: what it was trained on shows in what it says.

Nothing has to be shipped or licensed, and the mix is the model's own (as in LLM-QAT, Liu et al. 2023, arXiv
2305.17888, which begins with random tokens; openings keep a small model to sense). Documents are sampled from
the openings below and fill whole chunks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitqwen.checkpoints import open_checkpoint
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.convert import convert
from bitqwen.engine import Batch, Model, Session
from bitqwen.generation.chat_template import ChatTemplate
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.gguf import FLOAT_TYPES

from .calibration import Calibration

_SEQUENCES = 16  # written at once
_PAGE = 64  # positions that the KV cache gives out at once
_SCHEME = "q8_0"  # of the file that floats are run as: no choice of words shows the difference
_A_MATRIX = "blk.0.ffn_down.weight"
# Of the likeliest tokens one is drawn by its probability: the tail, cut off, is where small models go astray.
_TOP = 64

_PROSE = (
    "The town lies on the left bank of the river, about forty kilometres north of",
    "She was born in 1868, the third daughter of a schoolmaster, and",
    "The film received mixed reviews. Critics praised",
    "In the second half of the season the team won",
    "The species was first described in 1831 by",
    "The regiment was raised in the autumn of 1861 and",
    "The album was recorded over six weeks in",
    "The bridge, completed in 1932, carries",
    "A tropical depression formed on August 14 east of",
    "The church dates from the thirteenth century. Its tower",
    "Construction of the railway began in 1884, but",
    "The novel tells the story of a young man who",
    "The proteins of this family are found in",
    "During the siege the garrison was reduced to",
    "His early work was influenced by",
    "The highway begins at an intersection with",
    "Dear editor, I read with interest your article on",
    "It was raining when the train stopped, and nobody",
    "The committee's report, published on Tuesday, found that",
    "To make the dough, put the flour in a large bowl and",
    "The trade of the Baltic ports in the fifteenth century",
    "Inflation is usually measured by",
    "The patient was a 54-year-old man who",
    "Most people who keep bees will tell you that",
)
_CODE = (
    "import os\nimport sys\nimport argparse\n\n\ndef ",
    "class Node:\n    def __init__(self, value):\n",
    "from dataclasses import dataclass\n\n\n@dataclass\nclass ",
    "import numpy as np\n\n\ndef ",
    "def test_",
    "#include <vector>\n#include <string>\n\n",
    "package main\n\nimport (\n",
    "const express = require('express');\n",
    "import React, { useState } from 'react';\n",
    "CREATE TABLE ",
    "#!/usr/bin/env bash\nset -euo pipefail\n\n",
    "public class ",
    "use std::collections::HashMap;\n\n",
    '"""',
    "import json\nimport logging\nfrom pathlib import Path\n\nlogger = logging.getLogger(__name__)\n\n\n",
    "def solve(",
)
_QUESTIONS = (
    "Why is the sky blue?",
    "Write a Python function that checks whether a string is a palindrome.",
    "What caused the First World War? Answer in one paragraph.",
    "A shop sells pens at 3 for 2 euros. How much do 12 pens cost? Explain step by step.",
    "Translate into French: The library closes at six o'clock on Fridays.",
    "Explain recursion to a child.",
    "Write a SQL query that finds the five customers with the most orders.",
    "What is the difference between a list and a tuple?",
    "Summarise the plot of Romeo and Juliet.",
    "How do vaccines work?",
    "Write a short poem about autumn.",
    "Fix this code: for i in range(10) print(i)",
    "Give me a recipe for pancakes.",
    "What are the advantages of solar power?",
    "Write a class in Python for a bank account with deposit and withdraw.",
    "How can I sleep better?",
    "Implement binary search in JavaScript.",
    "Who was Marie Curie?",
    "Explain how HTTPS keeps a connection private.",
    "Write a regular expression for dates such as 2024-05-31, and explain it.",
    "Plan a weekend in Rome for a family with two children.",
    "What does this do? x = [y ** 2 for y in range(10) if y % 2]",
    "Write an e-mail that asks for a refund.",
    "Solve for x: 2x + 7 = 19.",
)

Ids = npt.NDArray[np.int64]


def write(
    model: Model,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    tokens: int,
    chunk: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Ids:
    """Lets a model write a text; the same for the same model and seed.

    Args:
        model: its KV cache must have room for 16 chunks, or as many as are wanted.
        tokenizer: the model's.
        template: the model's.
        tokens: of the text; whole chunks of it are written.
        chunk: tokens that see each other: one document, or several one after the other.
        seed: of what is drawn.
        progress: called with tokens written and tokens in all.

    Returns:
        int64 [tokens // chunk, chunk].

    Raises:
        ResourceError: the KV cache is too small.
    """
    out = np.empty((tokens // chunk, chunk), np.int64)
    openings = _openings(tokenizer, template)
    sequences = max(1, min(_SEQUENCES, model.free_positions // _whole_pages(chunk)))
    for begin in range(0, len(out), sequences):
        rows = out[begin : begin + sequences]
        _write_rows(rows, model, tokenizer, openings, np.random.default_rng([seed, begin]))
        if progress:
            progress((begin + len(rows)) * chunk, out.size)
    return out


def write_for(
    source: str,
    *,
    tokens: int,
    chunk: int,
    folder: Path,
    seed: int = 0,
    threads: int | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Ids:
    """Lets the model of a checkpoint write a text, as :func:`write` does.

    Args:
        source: as for :func:`bitqwen.convert.convert`; a quantised GGUF file runs as it is, weights in
            floats as a file of eight bits, for speed.
        tokens: of the text; whole chunks of it are written.
        chunk: tokens that see each other.
        folder: where such a file may stand until the text is written.
        seed: of what is drawn.
        threads: of the engine; None for one a core.
        revision: a hub id's branch, tag or commit.
        token: for gated repositories.
        offline: use only what the cache holds.
        progress: called with tokens written and tokens in all.

    Raises:
        DownloadError, CheckpointError, ModelFileError, UnsupportedModelError: the model cannot be run.
        ResourceError: too little memory or disk.
    """
    checkpoint = open_checkpoint(source, revision=revision, token=token, offline=offline)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".bitqwen.") as scratch:
        file = checkpoint.file if isinstance(checkpoint, GGUFCheckpoint) else None
        if file is not None and file.tensors[_A_MATRIX].type not in FLOAT_TYPES:
            path = Path(file.path)
        else:
            path = Path(scratch) / "source.gguf"
            convert(source, path, _SCHEME, threads=threads, revision=revision, token=token, offline=offline)
        context = _whole_pages(chunk)
        positions = _SEQUENCES * context
        model = Model.open(path, context=context, cache_positions=positions, threads=threads, exact_head=True)
    tokenizer, template = Tokenizer(checkpoint.tokenizer()), ChatTemplate(checkpoint.chat_template)
    return write(model, tokenizer, template, tokens=tokens, chunk=chunk, seed=seed, progress=progress)


def own_tokens(calibration: Calibration, *, shipped: bool) -> int:
    """How many tokens :func:`with_own_text` lets the model write: whole chunks, so perhaps none."""
    chunks = calibration.tokens // calibration.chunk
    return (chunks // 2 if shipped else chunks) * calibration.chunk


def with_own_text(
    calibration: Calibration, source: str, *, folder: Path, shipped: bool, **options: Any
) -> Calibration:
    """A calibration on text that the model of a checkpoint writes.

    Args:
        calibration: how many tokens, and all else.
        source: the checkpoint.
        folder: as for :func:`write_for`.
        shipped: whether half of the text is what the calibration has by itself.
        **options: as for :func:`write_for`.

    Raises:
        UsageError, DownloadError, CheckpointError, ModelFileError, UnsupportedModelError, ResourceError: as
            :func:`write_for` and :meth:`Calibration.ids`.
    """
    chunk, tokens = calibration.chunk, own_tokens(calibration, shipped=shipped)
    if tokens == 0:
        return calibration
    own = write_for(source, tokens=tokens, chunk=chunk, folder=folder, **options)
    if not shipped:
        return dataclasses.replace(calibration, token_ids=own, origin="self-written")
    hub = {name: options[name] for name in ("revision", "token", "offline") if name in options}
    rest = dataclasses.replace(calibration, tokens=calibration.tokens // chunk * chunk - tokens)
    both = in_turns(rest.ids(open_checkpoint(source, **hub)), own)
    return dataclasses.replace(calibration, token_ids=both, origin="shipped and self-written")


def in_turns(first: Ids, second: Ids) -> Ids:
    """Chunks of both, int64 [chunks, chunk], evenly mixed, so that any beginning has some of each."""
    places = np.concatenate([(np.arange(len(ids)) + 0.5) / len(ids) for ids in (first, second)])
    return np.concatenate([first, second])[np.argsort(places, kind="stable")]


def _whole_pages(positions: int) -> int:
    return -(-positions // _PAGE) * _PAGE


def _openings(tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[list[int]]:
    """Without end: prose, code and questions in turns, each kind from its first to its last and again."""
    chats = [
        template.render([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in _QUESTIONS
    ]
    for texts in zip(cycle(_PROSE), cycle(_CODE), cycle(chats)):
        for text in texts:
            yield tokenizer.encode(text, allow_special=True)


def _write_rows(
    rows: Ids, model: Model, tokenizer: Tokenizer, openings: Iterator[list[int]], random: np.random.Generator
) -> None:
    chunk = rows.shape[1]
    sessions: list[Session] = [model.session() for _ in rows]
    unused = np.array(tokenizer.unused_ids, np.int64)
    stops = set(tokenizer.stop_ids)
    texts = [next(openings)[: chunk - 1] for _ in rows]
    fed = [0] * len(rows)
    batch = Batch(model)
    try:
        while True:
            places = [place for place, text in enumerate(texts) if len(text) < chunk]
            if not places:
                break
            logits = batch.step([(sessions[place], texts[place][fed[place] :]) for place in places])
            logits = logits[:, : tokenizer.vocab_size]
            logits[:, unused] = -np.inf
            for place, row in zip(places, logits, strict=True):
                fed[place] = len(texts[place])
                token = _draw(row, random)
                texts[place].append(token)
                if token in stops:
                    texts[place] += next(openings)
    finally:
        for session in sessions:
            session.close()
    rows[:] = [text[:chunk] for text in texts]


def _draw(logits: npt.NDArray[np.float32], random: np.random.Generator) -> int:
    best = np.argpartition(logits, -_TOP)[-_TOP:] if len(logits) > _TOP else np.arange(len(logits))
    noise = random.gumbel(size=len(best))
    return int(best[np.argmax(logits[best] + noise)])
