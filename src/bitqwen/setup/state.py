"""Which steps of a set-up are done: each is known by a hash of what went in, and of what came out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitqwen.checkpoints.checkpoint import file_sha256
from bitqwen.errors import UsageError
from bitqwen.files import atomic_file

_NAME = "setup-state.json"


def digest(*parts: object) -> str:
    """A hash of values that have a JSON form."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


class State:
    """The steps that are done in a folder, in a small file beside their results."""

    def __init__(self, folder: Path, source: str) -> None:
        """Reads the file if there is one.

        Raises:
            UsageError: the folder belongs to another model.
        """
        self.path = folder / _NAME
        self._steps: dict[str, Any] = {}
        try:
            saved = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            saved = {}  # nothing done, or a file that says nothing: do it again
        if isinstance(saved, dict) and isinstance(saved.get("steps"), dict):
            if saved.get("source") != source:
                raise UsageError(
                    f"{folder} holds what was set up from {saved.get('source')}, not from {source}.",
                    hint="Give another folder with --output.",
                )
            self._steps = saved["steps"]
        self._source = source

    def done(self, step: str, inputs: str) -> bool:
        """Whether a step was done with these inputs and its files are still what they were."""
        record = self._steps.get(step)
        if not isinstance(record, dict) or record.get("inputs") != inputs:
            return False
        files = record.get("files")
        return isinstance(files, dict) and all(_same(Path(name), facts) for name, facts in files.items())

    def record(self, step: str, inputs: str, files: Sequence[Path]) -> None:
        """Notes that a step is done; hashes its files."""
        facts = {str(path): {**_stamp(path), "sha256": file_sha256(path)} for path in files}
        self._steps[step] = {"inputs": inputs, "files": facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write(json.dumps({"source": self._source, "steps": self._steps}, indent=1).encode() + b"\n")


def _stamp(path: Path) -> dict[str, int]:
    facts = path.stat()
    return {"size": facts.st_size, "modified": facts.st_mtime_ns}


def _same(path: Path, facts: Any) -> bool:
    """By size and time; where only the time differs, by hash."""
    if not isinstance(facts, dict) or not path.is_file():
        return False
    stamp = _stamp(path)
    if stamp["size"] != facts.get("size"):
        return False
    return stamp["modified"] == facts.get("modified") or file_sha256(path) == facts.get("sha256")
