"""What a benchmark says of a file without running it: its bits, and the quality that its receipt notes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from bitqwen.errors import BitqwenError
from bitqwen.gguf import GGUFFile
from bitqwen.measure import receipt


def about(path: Path) -> dict[str, Any]:
    """``bits_per_weight``, and ``quality`` by text as the receipt has it; None for what is not known."""
    try:
        file = GGUFFile(path)
        weights = sum(math.prod(tensor.shape) for tensor in file.tensors.values())
        nbytes = sum(tensor.nbytes for tensor in file.tensors.values())
        found = receipt.read(file.metadata, path.stat().st_size)
    except BitqwenError:  # a peer may know a type that we do not
        return {"bits_per_weight": None, "quality": None}
    return {
        "bits_per_weight": 8 * nbytes / weights if weights else None,
        "quality": None if found is None else {name: vars(domain) for name, domain in found.domains.items()},
    }
