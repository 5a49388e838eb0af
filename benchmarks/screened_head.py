"""What a screened output head saves, that it changes no token, and how often it misses a row.

Both models are open at once and take turns; the quickest of each counts. The head's own time is from the
engine's profile of a few tokens, for 1, 2, 4 and 8 sequences in a step.

    python benchmarks/screened_head.py MODEL.gguf [--threads 2] [--rounds 3]
    python benchmarks/screened_head.py MODEL.gguf --check 100000 [--text FILE ...]

--check computes so many positions of the texts with both and counts rows that were needed, for a greedy token
and for the 20 highest, and left out.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import machine
import numpy as np

import bitqwen
from bitqwen.engine import Batch, Screen, Session
from bitqwen.texts import packaged_names, packaged_text

_PROMPT = "Write a Python function that reads a CSV file and returns the sum of each column."
_SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "top-k 20, top-p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "seed": 1},
    "the same, penalty 1.1": {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "seed": 1,
        "repetition_penalty": 1.1,
    },
}
_BATCHES = (1, 2, 4, 8)
_CHUNK = 256  # positions of one context
_STEP = 4  # the most that one screened step has


def _token_times(
    models: dict[str, Any], settings: dict[str, Any], rounds: int, tokens: int
) -> dict[str, float]:
    """Seconds a token, the quickest of some answers; ends the program if answers differ."""
    best = dict.fromkeys(models, float("inf"))
    answers = set()
    for _ in range(rounds):
        for name, model in models.items():
            prompt = [{"role": "user", "content": _PROMPT}]
            answer = model.generate(prompt, max_tokens=tokens, **settings)
            answers.add(tuple(answer.tokens))
            best[name] = min(best[name], answer.timings.decode_seconds / answer.timings.decode_steps)
    if len(answers) != 1:
        raise SystemExit("The screened head has changed the answer: this is a bug.")
    return best


def _head_times(
    models: dict[str, Any], screen: Screen, batch: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Of a step of so many sequences: seconds of the head, and of the whole step."""
    ids = models["exact"].tokenizer.encode(packaged_text("code"))
    best = dict.fromkeys(models, (float("inf"), float("inf")))
    for _ in range(rounds):
        for name, model in models.items():
            with contextlib.ExitStack() as stack:
                sessions = [stack.enter_context(model.model.session()) for _ in range(batch)]
                for i, session in enumerate(sessions):
                    session.feed(ids[20 * i : 20 * i + 16], logits="none")
                profile = stack.enter_context(model.model.profile())
                for step in range(8):
                    work = [(session, [ids[20 * i + 16 + step]]) for i, session in enumerate(sessions)]
                    Batch(model.model).step(work, screens=[screen] * batch)
            operations = {each.name: each.seconds for each in profile.operations}
            head = (operations["head"] + operations["screen"]) / 8
            best[name] = (min(best[name][0], head), min(best[name][1], sum(operations.values()) / 8))
    return best


def _rows(session: Session, ids: list[int], screen: Screen) -> Any:
    return session.feed(ids, logits="all", screen=screen)


def _check(models: dict[str, Any], texts: list[str], positions: int) -> None:
    """Counts the rows that a screened step left out though they were needed."""
    ids = [token for text in texts for token in models["exact"].tokenizer.encode(text)]
    screens = {"greedy": Screen(top=1), "the 20 highest": Screen(top=20)}
    checked, missed, computed = (
        dict.fromkeys(screens, 0),
        dict.fromkeys(screens, 0),
        dict.fromkeys(screens, 0.0),
    )
    for begin in range(0, min(positions, len(ids)) - _CHUNK + 1, _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        full = models["exact"].model.logits(chunk)
        with models["screened"].model.session() as session:
            for step in range(0, _CHUNK, _STEP):
                name = tuple(screens)[step // _STEP % 2]
                top = screens[name].top or 0
                ids_of_step = chunk[step : step + _STEP]
                together = [ids_of_step] if top == 1 else [[each] for each in ids_of_step]
                out = [row for part in together for row in _rows(session, part, screens[name])]
                for row, whole in zip(out, full[step : step + _STEP], strict=True):
                    there = np.isfinite(row)
                    if not np.array_equal(row[there], whole[there]):
                        raise SystemExit("A computed row differs from the whole head's: this is a bug.")
                    needed = whole >= np.partition(whole, -top)[-top]
                    missed[name] += int((needed & ~there).sum())
                    checked[name] += 1
                    computed[name] += there.mean()
        if begin // _CHUNK % 20 == 0:
            print(f"{begin + _CHUNK} positions, {sum(missed.values())} missed", flush=True)
    print("\n| | positions | rows decided | needed rows left out | rows computed |\n|---|---|---|---|---|")
    for name, count in checked.items():
        rows = count * models["exact"].model.vocab_size
        share = computed[name] / max(count, 1)
        print(f"| {name} | {count:,} | {rows:,} | {missed[name]} | {share:.1%} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--check", type=int, metavar="POSITIONS")
    parser.add_argument("--text", type=Path, action="append", help="beside or instead of bitqwen's own texts")
    options = parser.parse_args()
    common = {"context": 512, "threads": options.threads}
    models = {
        name: bitqwen.load(options.model, exact_head=name == "exact", **common)
        for name in ("exact", "screened")
    }
    where = machine.describe()
    print(f"{options.threads} threads, {where['cpu']} ({', '.join(where['isa'])}), {where['date']}")
    if options.check:
        files = [path.read_text(encoding="utf-8") for path in options.text or []]
        _check(models, files or [packaged_text(name) for name in packaged_names()], options.check)
        return
    loads = {name: model.load_seconds for name, model in models.items()}
    print(f"load: {loads['exact']:.2f} s, with a screen {loads['screened']:.2f} s")
    rows = []
    for what, settings in _SETTINGS.items():
        times = _token_times(models, settings, options.rounds, options.tokens)
        rows.append((f"a token, {what}", times["exact"], times["screened"]))
    for model in models.values():
        model.close()  # its conversation takes up the cache
    for what, screen in (("greedy", Screen(top=1)), ("20 highest", Screen(top=20))):
        for batch in _BATCHES:
            both = _head_times(models, screen, batch, options.rounds)
            for part, name in enumerate(("head", "step")):
                rows.append((f"{name}, {batch} x {what}", both["exact"][part], both["screened"][part]))
    print("\n| ms | whole head | screened | saved |\n|---|---|---|---|")
    for what, whole, screened in rows:
        print(f"| {what} | {1e3 * whole:.2f} | {1e3 * screened:.2f} | {1 - screened / whole:.0%} |")


if __name__ == "__main__":
    main()
