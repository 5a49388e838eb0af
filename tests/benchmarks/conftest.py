from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def of_benchmarks(module: ModuleType) -> bool:
    return BENCHMARKS in Path(getattr(module, "__file__", None) or "/").parents


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by its name; what came with it goes after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = {name: module for name, module in sys.modules.items() if of_benchmarks(module)}
    for name in before:
        del sys.modules[name]
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if of_benchmarks(module)]:
        del sys.modules[name]
    sys.modules.update(before)
