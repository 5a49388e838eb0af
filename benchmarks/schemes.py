"""What each scheme loses on one model, without calibration: the data that `bitqwen inspect --fit` shows.

The source is the neutral one of `quality.py`, whose folder it takes; every row is written when it is measured
and a run goes on where another one stopped. Rows measured on other texts are measured again.

    python benchmarks/schemes.py FOLDER [--schemes w4,v3] [--chunks 3] [--save published.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine
from measured import measured

from bitqwen.checkpoints import open_checkpoint
from bitqwen.convert import convert
from bitqwen.measure import published
from bitqwen.measure.reference import ReferenceFile
from bitqwen.models.registry import config_from_hf

SCHEMES = "w4,v3,v2.5,v2,w2,ternary,q3_k,q2_k,q6_k,q8_0,q5_k,q4_0,bitnet"
MODEL = "Qwen2.5-Coder-1.5B-Instruct"


def main() -> None:
    """Measures what is not there yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the working folder of quality.py")
    parser.add_argument("--schemes", default=SCHEMES)
    parser.add_argument("--chunks", type=int, default=3)
    parser.add_argument("--save", type=Path, default=published.PATH)
    options = parser.parse_args()
    source = options.folder / "neutral.gguf"
    saved = ReferenceFile(options.folder / "neutral.ref")
    config = config_from_hf(open_checkpoint(source).config, source=str(source))
    about = machine.describe()
    settings = f"{options.chunks} chunks of {saved.layout.context} tokens a text, second halves scored"
    document: dict[str, Any] = {
        "model": MODEL,
        "hidden_size": config.hidden_size,
        "layers": config.layers,
        "settings": settings,
        "schemes": {},
    }
    if options.save.exists():
        before = json.loads(options.save.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            document["schemes"] = before["schemes"]
    for scheme in options.schemes.split(","):
        if scheme in document["schemes"]:
            continue
        path = options.folder / f"scheme-{scheme}.gguf"
        convert(source, path, scheme, force=True)
        found = measured(path, saved, options.chunks)
        path.unlink()
        document["schemes"][scheme] = {
            "kl": {name: round(each["kl"], 5) for name, each in found["texts"].items()},
            "same_top": {name: round(each["same_top"], 4) for name, each in found["texts"].items()},
            "nbytes": found["bytes"],
            "date": about["date"][:10],
        }
        options.save.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        print(f"| {scheme} | {found['bytes'] / 1e6:.0f} | {document['schemes'][scheme]['kl']} |", flush=True)


if __name__ == "__main__":
    main()
