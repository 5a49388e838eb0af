"""What programs may do in the sandbox. Tests of what this kernel cannot isolate are skipped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bitqwen.errors import UsageError
from bitqwen.measure.tasks import humaneval, sandbox
from bitqwen.measure.tasks.sandbox import Isolation, Limits, run_program


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    outcome = run_program("pass")
    assert outcome.status == "passed"
    return outcome.isolation


def need(isolation: Isolation, what: str) -> None:
    if not getattr(isolation, what):
        pytest.skip(f"this kernel cannot isolate {what}")


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 2",
        "import collections, datetime, decimal, functools, hashlib, heapq, itertools, json, math, random\n"
        "hashlib.md5(b'x'); datetime.datetime.now(); random.random()",
        "print('x' * 1_000_000)",
        "assert __name__ != '__main__'",
        "open('note', 'w').write('hi'); assert open('note').read() == 'hi'",
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')",
        "import threading\nt = threading.Thread(target=print); t.start(); t.join()",
        "import sys; sys.setrecursionlimit(5000)\ndef f(n): return n and f(n - 1)\nf(3000)",
        "assert 'é' in 'né'",
    ],
)
def test_ordinary_programs_pass(program: str) -> None:
    outcome = run_program(program)
    assert (outcome.status, outcome.detail) == ("passed", "")


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(Exception):\n  def __str__(self): raise SystemExit\nraise E", "E"),
        ("raise ValueError('a\\nb\\npassed')", "ValueError: a b passed"),
        ("import numpy", "ModuleNotFoundError"),
        ("input()", "EOFError"),
        ("x = '\\ud800'; raise ValueError(x)", "ValueError"),
    ],
)
def test_failures_say_why(program: str, detail: str) -> None:
    outcome = run_program(program)
    assert outcome.status == "failed"
    assert outcome.detail.startswith(detail)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os\nfor fd in range(3, 20):\n  try: os.write(fd, b'passed\\npassed 00\\n')\n"
        "  except OSError: pass\nos._exit(0)",
        "import os, signal; os.close(int(__import__('sys').argv[1])); os._exit(0)",
    ],
)
def test_leaving_early_is_not_passing(program: str) -> None:
    assert run_program(program).status == "failed"


def test_the_network_is_out_of_reach(isolation: Isolation) -> None:
    need(isolation, "network")
    for program in (
        "import socket; socket.create_connection(('127.0.0.1', 1), 1)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    ):
        outcome = run_program(program)
        assert outcome.status == "failed"
        # Refused by the kernel, not by a server that is not there.
        assert "not permitted" in outcome.detail or "unreachable" in outcome.detail


def test_files_elsewhere_are_out_of_reach(isolation: Isolation, tmp_path: Path) -> None:
    need(isolation, "files")
    secret, target = tmp_path / "secret", tmp_path / "target"
    secret.write_text("a password")
    for program in (
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'w')",
        f"open({str(target)!r}, 'w')",
        f"import os; os.remove({str(secret)!r})",
        f"import os; os.listdir({str(tmp_path)!r})",
        f"import os; os.mkdir({str(target)!r})",
        f"import os; os.rename('program.py', {str(target)!r})",
        f"import os; os.link({str(secret)!r}, 'here')",
        f"import os; os.symlink({str(secret)!r}, 'here'); open('here').read()",
        "import os; open(os.path.join(os.path.dirname(os.__file__), 'x'), 'w')",
    ):
        outcome = run_program(program)
        assert outcome.status == "failed", program
        assert outcome.detail.startswith(("PermissionError", "OSError")), program
    assert secret.read_text() == "a password"
    assert not target.exists()


def test_other_processes_are_out_of_reach(isolation: Isolation) -> None:
    need(isolation, "processes")
    for program in (
        "import os; os.fork()",
        "import os; os.kill(os.getppid(), 9)",
        f"import os; os.kill({os.getpid()}, 0)",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
        "import os; os.system('true') == 0 or exit(1)",
        "import os, sys; os.execv(sys.executable, [sys.executable])",
        "import ctypes, os\nif ctypes.CDLL(None).syscall(435, None, 0) < 0: raise OSError('clone3')",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 1))",
    ):
        assert run_program(program).status == "failed", program


def test_time_and_memory_and_files_are_limited() -> None:
    assert run_program("while True: pass", Limits(cpu_seconds=1)).status == "timed out"
    assert run_program("import time; time.sleep(600)", Limits(seconds=1)).status == "timed out"
    ignoring = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert run_program(ignoring, Limits(cpu_seconds=1)).status == "failed"
    assert run_program("bytearray(1 << 31)").detail.startswith("MemoryError")
    assert run_program("open('x', 'wb').write(bytes(1 << 22))").status == "failed"
    assert run_program("x = [open('/dev/null') for _ in range(100)]").status == "failed"


def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run_program("open('left', 'w').write('x'); import os; os.mkdir('folder')")
    run_program("import time; time.sleep(600)", Limits(seconds=0.5))
    assert list(tmp_path.iterdir()) == []


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os; assert 'HF_TOKEN' not in os.environ").status == "passed"


def test_what_is_missing_is_said() -> None:
    assert Isolation().missing() == ["network", "files", "processes"]
    assert Isolation(network=True, files=True, processes=True).missing() == []
    assert sandbox._isolation("[]") == sandbox._isolation('{"network": 1}') == Isolation()


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="Linux only"):
        run_program("pass")


def test_a_program_that_was_ended_before_it_said_so_tells_nothing_of_the_machine() -> None:
    outcome = sandbox._outcome(b"", "token", killed=True, code=-9)
    assert (outcome.status, outcome.isolation) == ("timed out", None)
    told = sandbox._outcome(
        b'{"network": true, "files": false, "processes": false}\n', "token", killed=True, code=-9
    )
    assert told.isolation == Isolation(network=True)
    assert humaneval._warnings([outcome]) == ()
    assert "files, processes" in humaneval._warnings([outcome, told])[0]
