from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import stat
import subprocess
import sys
import termios

import pytest

import bitqwen as library

GREEDY = ["--temp", "0", "-n", "8", "-t", "1"]


@pytest.fixture
def answers(tiny_gguf):
    """What the library answers, turn by turn."""

    def ask(*questions: str, system: str | None = None) -> list[str]:
        chat = library.load(tiny_gguf, threads=1).chat(system, temperature=0, max_tokens=8)
        return [chat.send(question).text for question in questions]

    return ask


def test_turns_remember_each_other(bitqwen, tiny_gguf, answers):
    result = bitqwen("chat", tiny_gguf, *GREEDY, "--system", "Be brief.", stdin="the fox\nand the dog\n")
    assert result.returncode == 0
    assert result.stdout == "".join(a + "\n" for a in answers("the fox", "and the dog", system="Be brief."))
    assert result.stderr.count("[8 tokens, ") == 2
    assert result.stderr.count(", cut off]") == 2


def test_messages_of_several_lines(bitqwen, tiny_gguf, answers):
    result = bitqwen("chat", tiny_gguf, *GREEDY, stdin='a\\\nb\n"""\nc\nd\n"""\n')
    assert result.stdout == "".join(a + "\n" for a in answers("a\nb", "c\nd"))


def test_quiet(bitqwen, tiny_gguf):
    assert bitqwen("chat", tiny_gguf, *GREEDY, "--quiet", stdin="the fox\n").stderr == ""


def test_clear_and_retry(bitqwen, tiny_gguf, answers):
    (first,) = answers("the fox")
    result = bitqwen("chat", tiny_gguf, *GREEDY, stdin="the fox\n/retry\n/clear\nthe fox\n")
    assert result.stdout == f"{first}\n" * 3


def test_system_command(bitqwen, tiny_gguf, answers):
    (expected,) = answers("the fox", system="Bark.")
    result = bitqwen("chat", tiny_gguf, *GREEDY, stdin="/system Bark.\nthe fox\n")
    assert result.stdout == f"{expected}\n"


def test_set_save_load_stats(bitqwen, tiny_gguf, tmp_path, answers):
    file = tmp_path / "c.json"
    result = bitqwen(
        "chat", tiny_gguf, *GREEDY, stdin=f"/set max_tokens 3\nthe fox\n/stats\n/save {file}\n/set top_q 1\n"
    )
    saved = json.loads(file.read_text())
    assert saved["settings"] == {"temperature": 0.0, "max_tokens": 3}
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    for words in ("[3 tokens, ", "memory: weights", "context: ", "last answer: 3 tokens", "top_q", "hint: "):
        assert words in result.stderr
    again = bitqwen("chat", tiny_gguf, "-t", "1", stdin=f"/load {file}\n/set max_tokens 8\nand the dog\n")
    chat = library.load(tiny_gguf, threads=1).chat(temperature=0, max_tokens=8)
    chat.messages[:] = saved["messages"]
    assert again.stdout == chat.send("and the dog").text + "\n"


def test_an_error_ends_the_turn_and_not_the_chat(bitqwen, tiny_gguf, answers):
    (expected,) = answers("the fox")
    long = "the fox " * 60
    result = bitqwen(
        "chat", tiny_gguf, *GREEDY, "-c", "64", stdin=f"{long}\n/nonsense\nthe fox\n/exit\nmore\n"
    )
    assert result.returncode == 0
    assert result.stdout == f"{expected}\n"
    assert result.stderr.count("error: ") == 2


def test_help(bitqwen, tiny_gguf):
    result = bitqwen("chat", tiny_gguf, stdin="/help\n/exit\n")
    for command in ("/help", "/clear", "/system", "/save", "/load", "/set", "/stats", "/exit"):
        assert f"\n{command} " in result.stderr


class Terminal:
    """The chat on a pseudo-terminal, typed at and read like a user's."""

    def __init__(self, *arguments: object) -> None:
        self._master, slave = pty.openpty()

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "bitqwen", "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own_terminal,  # noqa: PLW1509 - one system call, no lock
            env=os.environ | {"TERM": "dumb", "COLUMNS": "200"},
        )
        os.close(slave)
        self.seen = ""

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def press_ctrl_c(self, words: str) -> str:
        """Until these words come: readline does not see a Ctrl-C between its prompt and its waiting."""
        for _ in range(60):
            self.type("\x03")
            if select.select([self._master], [], [], 2)[0]:
                break
        return self.wait_for(words)

    def wait_for(self, words: str) -> str:
        """Reads until these words have come; returns what came up to their end."""
        while words not in self.seen:
            ready, _, _ = select.select([self._master], [], [], 120)
            assert ready, f"{words!r} did not come; seen: {self.seen!r}"
            try:
                self.seen += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError as error:  # the other side is closed
                raise AssertionError(f"{words!r} did not come; seen: {self.seen!r}") from error
        end = self.seen.index(words) + len(words)
        read, self.seen = self.seen[:end], self.seen[end:]
        return read

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(tiny_gguf):
    made = Terminal(tiny_gguf, "--temp", "0", "-n", "0", "-t", "1")
    yield made
    made.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal, own_cache):
    terminal.wait_for(">>> ")
    terminal.type("the fox\n")
    terminal.wait_for("the fox\r\n")
    terminal.wait_for(" ")  # the answer has begun, and would go on to the end of 4096 tokens
    stopped = terminal.press_ctrl_c(", stopped]")
    assert "Traceback" not in stopped
    terminal.wait_for(">>> ")
    terminal.type("/set max_tokens 4\n")
    terminal.wait_for("max_tokens 4")
    terminal.wait_for(">>> ")
    terminal.type("and the dog\n")
    terminal.wait_for("[4 tokens, ")
    terminal.wait_for(">>> ")
    terminal.press_ctrl_c("/exit or Ctrl-D leaves.")
    terminal.wait_for(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(60) == 0
    history = own_cache / "chat_history"
    assert "and the dog" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
