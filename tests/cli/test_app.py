"""The command as a whole: help, version, exit codes, what becomes of an error."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest
import typer.main

from bitqwen import errors
from bitqwen.cli import terminal
from bitqwen.cli.app import app, main
from bitqwen.cli.options import EXIT_CODES

VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_verbs() -> None:
    assert VERBS == [
        "bench", "chat", "convert", "demo", "doctor", "eval",
        "inspect", "kernels", "pull", "run", "serve", "setup",
    ]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_and_the_exit_codes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"$ bitqwen {verb}" in text or f"| bitqwen {verb}" in text
    assert "Exit codes: 0 done" in text


def test_every_error_has_a_documented_exit_code() -> None:
    classes = [errors.BitqwenError, *errors.BitqwenError.__subclasses__()]
    assert {kind.exit_code for kind in classes} | {0} == set(EXIT_CODES)


def test_the_longest_answer_is_the_library_s() -> None:
    from bitqwen.cli.options import DEFAULT_MAX_TOKENS
    from bitqwen.generation import options

    assert options.DEFAULT_MAX_TOKENS == DEFAULT_MAX_TOKENS


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    from bitqwen import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"bitqwen {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["flyy"], ["run"], ["run", "x.gguf", "--temp", "-1"], ["chat", "--nope"]]
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_an_error_is_two_lines_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.ResourceError("The model needs 9 GB; 4 GB are free.", hint="Use fewer bits.")

    monkeypatch.setattr("bitqwen.checkpoints.sources.resolve", refuse)
    assert main(["pull", "a/b"]) == 6
    assert capsys.readouterr().err == "error: The model needs 9 GB; 4 GB are free.\nhint: Use fewer bits.\n"


@pytest.mark.parametrize("where", ["option", "environment"])
def test_debug_adds_the_trace(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bitqwen.cli.options._Debug.enabled", False)
    if where == "environment":
        monkeypatch.setenv("BITQWEN_DEBUG", "1")
    assert main(["pull", "no such thing", *(["--debug"] if where == "option" else [])]) == 2
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "error: " in text


def test_a_fault_of_ours_is_told_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("impossible")

    monkeypatch.setattr("bitqwen.checkpoints.sources.resolve", fail)
    assert main(["pull", "a/b"]) == 1
    text = capsys.readouterr().err
    assert "ValueError: impossible" in text
    assert "--debug" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/etc/x"), 3, "/etc/x: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device", "m.gguf"), 6, "No space left"),
        (MemoryError(), 6, "memory"),
    ],
)
def test_errors_of_the_system(
    error: Exception, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert terminal.report(error, debug=False) == code
    assert words in capsys.readouterr().err


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bitqwen.checkpoints.sources.resolve", interrupt)
    assert main(["pull", "a/b"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_closed_pipe_is_quiet() -> None:
    code = "import sys; from bitqwen.cli.app import main; sys.exit(main(['inspect', '--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait()


def test_sizes() -> None:
    assert [terminal.size(n) for n in (0, 999, 1000, 123_456_789, 1_117_320_768, 23e9)] == [
        "0 B",
        "999 B",
        "1 kB",
        "123 MB",
        "1.12 GB",
        "23.00 GB",
    ]
