"""What files of one model answer to the same three questions: code, prose and arithmetic; greedily.

Answers are printed as they are, good or bad, and cut after some tokens.

    python benchmarks/sample_answers.py FILE.gguf ... [--tokens 80] [--save answers.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import machine

import bitqwen

PROMPTS = {
    "code": "Write a Python function that merges two sorted lists. Only the code.",
    "prose": "In two sentences: why does the moon not fall down to Earth?",
    "arithmetic": "A train leaves at 9:40 and arrives at 12:15. How long is the journey? Think briefly.",
}


def main() -> None:
    """Asks every file, prints and saves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    answers: dict[str, dict[str, str]] = {}
    if options.save and options.save.exists():
        answers = json.loads(options.save.read_text(encoding="utf-8"))["results"]
    for path in options.files:
        if path.stem not in answers:
            model = bitqwen.load(path, context=512)
            answers[path.stem] = {
                name: model.generate(
                    [{"role": "user", "content": prompt}], max_tokens=options.tokens, temperature=0
                ).text
                for name, prompt in PROMPTS.items()
            }
            if options.save:
                machine.save(options.save, "sample_answers", answers)
        print(f"## {path.stem}, {path.stat().st_size / 1e6:.0f} MB\n")
        for name, answer in answers[path.stem].items():
            print(f"{name}:\n\n```text\n{answer}\n```\n", flush=True)


if __name__ == "__main__":
    main()
