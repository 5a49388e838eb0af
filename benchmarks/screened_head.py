"""What a screened output head saves of a greedy token, and that it changes no token.

Both models are open at once and answer in turns; the quickest answer of each counts. The head's own time
is from the engine's profile of a few tokens.

    python benchmarks/screened_head.py MODEL.gguf [--threads 2] [--rounds 3]
"""

from __future__ import annotations

import argparse

import machine

import bitqwen

_PROMPT = "Write a Python function that reads a CSV file and returns the sum of each column."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    common = {"context": 512, "threads": options.threads}
    heads = {
        "head": bitqwen.load(options.model, **common),
        "screen": bitqwen.load(options.model, screened_head=True, **common),
    }
    token = dict.fromkeys(heads, float("inf"))
    head = dict.fromkeys(heads, float("inf"))
    answers = set()
    for _ in range(options.rounds):
        for name, model in heads.items():
            answer = model.generate(
                [{"role": "user", "content": _PROMPT}], temperature=0, max_tokens=options.tokens
            )
            answers.add(tuple(answer.tokens))
            token[name] = min(token[name], answer.timings.decode_seconds / answer.timings.decode_steps)
            with model.model.profile() as profile:
                model.generate("The", temperature=0, max_tokens=16)
            operation = profile.operation(name)
            head[name] = min(head[name], operation.seconds / operation.calls)
    if len(answers) != 1:
        raise SystemExit("The screened head has changed the answer: this is a bug.")
    where = machine.describe()
    print(f"{options.threads} threads, {where['cpu']} ({', '.join(where['isa'])}), {where['date']}")
    print("\n| | whole head | screened | saved |\n|---|---|---|---|")
    for what, times in (("a token, ms", token), ("its head, ms", head)):
        whole, screened = 1e3 * times["head"], 1e3 * times["screen"]
        print(f"| {what} | {whole:.1f} | {screened:.1f} | {1 - screened / whole:.0%} |")


if __name__ == "__main__":
    main()
