"""The processes that run a benchmark's sides: workers of ours, and llama-bench programs of the user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

from bitqwen import errors
from bitqwen.errors import BitqwenError, UsageError

from .plan import Side, Test
from .worker import ENGINES

_WORKER = "import sys; from bitqwen.measure.bench.worker import main; sys.exit(main())"
_LLAMA_BENCH_TIMEOUT = 3600  # seconds


class SideProcess(Protocol):
    """A side that is ready to run tests."""

    facts: dict[str, Any]

    def run(self, test: Test, *, profile: bool = False) -> dict[str, Any]:
        """One repetition: ``seconds``, ``joules`` or None, the ``least_joules`` that mean something.

        With ``profile`` also ``operations``, empty where the engine does not tell.
        """
        ...

    def close(self) -> None:
        """Ends it."""
        ...


def start(side: Side, context: int) -> SideProcess:
    """Starts a side with room for ``context`` tokens.

    Raises:
        UsageError: no such engine, or an instruction set that cannot run here.
        BitqwenError: the model cannot be opened.
    """
    if side.engine in ENGINES:
        return Worker(side, context)
    if Path(side.engine).is_file() and os.access(side.engine, os.X_OK):
        return LlamaBench(side)
    raise UsageError(
        f"--against {side.engine}: there is no such engine or program.",
        hint=f"Allowed: {', '.join(name for name in ENGINES if name != 'bitqwen')}, or the path of a "
        "llama-bench program, llama.cpp's, ik_llama.cpp's or bitnet.cpp's; each also with =FILE.gguf, and "
        "FILE.gguf alone for bitqwen on another model.",
    )


class Worker:
    """A process of :mod:`bitqwen.measure.bench.worker`."""

    def __init__(self, side: Side, context: int) -> None:
        environment = dict(os.environ)
        if side.isa is not None:
            environment["BITQWEN_ISA"] = side.isa
        self._side = side
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        try:
            self.facts = self._ask(
                engine=side.engine,
                model=str(side.model),
                threads=side.threads,
                context=context,
                kv=side.kv,
                **({"exact_head": side.exact_head, "numa": side.numa} if side.engine == "bitqwen" else {}),
            )
        except BaseException:
            self.close()
            raise

    def _ask(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            pass
        if not line:
            code = self._process.wait()
            raise BitqwenError(
                f"{self._side.label}: its process ended with code {code}.",
                hint="What it printed is above. Too little memory ends a process like this.",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["class"], BitqwenError)
            raise kind(f"{self._side.label}: {answer['error']}", hint=answer["hint"])
        return answer

    def run(self, test: Test, *, profile: bool = False) -> dict[str, Any]:
        """One repetition."""
        return self._ask(kind=test.kind, tokens=test.tokens, depth=test.depth, profile=profile)

    def close(self) -> None:
        """Lets the process end by itself; kills it if it does not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class LlamaBench:
    """A llama-bench program, started anew for each repetition: it has no other way to take turns."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.facts: dict[str, Any] = {"program": side.engine, "energy_reason": "not read for programs"}

    def run(self, test: Test, *, profile: bool = False) -> dict[str, Any]:
        """One repetition, in a process of its own."""
        prompt, generate = (test.tokens, 0) if test.kind == "pp" else (0, test.tokens)
        command = [self._side.engine, "-m", str(self._side.model), "-t", str(self._side.threads)]
        command += ["-p", str(prompt), "-n", str(generate), "-r", "1", "-o", "json"]
        if test.depth:
            command += ["-d", str(test.depth)]
        if self._side.kv != "f16":
            values = "q4_0" if self._side.kv == "q4" else "q8_0"
            command += ["-ctk", "q8_0", "-ctv", values, "-fa", "1"]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_LLAMA_BENCH_TIMEOUT, check=False
        )
        try:
            (row,) = json.loads(result.stdout)
            seconds = test.tokens / float(row["avg_ts"])
        except (ValueError, KeyError, ZeroDivisionError, TypeError) as error:
            last = result.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
            raise BitqwenError(
                f"{' '.join(command)} gave no result (code {result.returncode}): {last[0]}",
                hint="It must understand -m, -t, -p, -n, -d, -r and -o json, as llama.cpp's does.",
            ) from error
        return {"seconds": seconds, "joules": None, "least_joules": 0.0, "operations": []}

    def close(self) -> None:
        """Nothing runs between repetitions."""
