"""How many of HumanEval's 164 functions files write, beside their source: pass@1, greedy, McNemar's test.

The first file is the one that the others are compared with. A file of llama.cpp's types that our engine does
not read is first written out in eight bits by llama-quantize, and runs as that.
Every file's answers are saved when they have been judged; a run goes on where another one stopped.

    python benchmarks/humaneval.py SOURCE.gguf FILE.gguf ... --allow-code-execution [--save humaneval.json]
        [--llama-quantize PROGRAM] [--limit N]
    python benchmarks/humaneval.py --show humaneval.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from measured import runnable

from bitqwen.measure.runner import run_tasks
from bitqwen.measure.tasks.results import paired
from bitqwen.measure.tasks.suite import RunOptions, Task


def solve(path: Path, task: Task, llama_quantize: Path | None) -> dict[str, Any]:
    """A file's answers, judged."""
    with runnable(path, llama_quantize, "Q8_0") as runs:
        (result,) = run_tasks(runs, [task], RunOptions(allow_code_execution=True))
    return {"bytes": path.stat().st_size, "as_q8_0": runs != path, **result.as_json()}


def show(document: dict[str, Any]) -> None:
    """The results as Markdown."""
    about = document["machine"]
    print(f"{about['cpu']}, {about['cores']} CPUs, {about['date']}\n")
    print(
        "| file | MB | pass@1 (95 %) | of the source's | only it, only the source | McNemar's p | tokens/s |"
    )
    print("|---|---|---|---|---|---|---|")
    reference: dict[str, Any] | None = None
    for name, found in document["results"].items():
        share = found["share"]
        cells = [name, f"{found['bytes'] / 1e6:.0f}"]
        cells.append(f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})")
        if reference is None:
            reference = found
            cells += ["", "", ""]
        else:
            test = paired(
                *({item["id"]: item["solved"] for item in each["items"]} for each in (found, reference))
            )
            solved = reference["share"]["value"]
            cells.append(f"{share['value'] / solved:.0%}" if solved else "")
            cells += [f"{test.only_model}, {test.only_reference}", f"{test.p_value:.3f}"]
        cells.append(f"{found['tokens'] / found['writing_seconds']:.0f}")
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Runs what is not in the results yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--allow-code-execution", action="store_true", help="run what the models write")
    parser.add_argument("--llama-quantize", type=Path)
    parser.add_argument("--limit", type=int, help="only the first problems")
    parser.add_argument("--save", type=Path, default=Path("humaneval.json"))
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a saved table, and measure nothing")
    options = parser.parse_args()
    if options.show:
        show(json.loads(options.show.read_text(encoding="utf-8")))
        return
    if not options.files or not options.allow_code_execution:
        parser.error("files and --allow-code-execution are needed: programs that models write are run")
    task = Task("humaneval", options.limit)
    results: dict[str, Any] = {}
    if options.save.exists():
        results = json.loads(options.save.read_text(encoding="utf-8"))["results"]
    for path in options.files:
        if path.stem in results:
            continue
        results[path.stem] = solve(path, task, options.llama_quantize)
        machine.save(options.save, "humaneval", results)
        print(f"{path.stem}: {results[path.stem]['share']['value']:.1%}", flush=True)
    show(json.loads(options.save.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
