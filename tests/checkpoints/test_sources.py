from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitqwen.checkpoints import Provenance, hub, open_checkpoint, packages
from bitqwen.checkpoints.gguf import GGUFCheckpoint
from bitqwen.checkpoints.huggingface import HuggingFaceCheckpoint
from bitqwen.checkpoints.sources import resolve
from bitqwen.errors import DownloadError, ModelFileError, UsageError
from helpers.gguf_file import write_gguf
from helpers.tiny_checkpoint import TinyCheckpoint


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a download was tried: {args} {kwargs}")

    monkeypatch.setattr(hub, "fetch", refuse)
    monkeypatch.setattr(packages, "fetch", refuse)


@pytest.fixture
def tiny(tiny_checkpoint: Callable[..., TinyCheckpoint]) -> TinyCheckpoint:
    return tiny_checkpoint()


class TestLocal:
    def test_a_folder(self, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = Provenance(source=tiny.folder.name, kind="folder")
        assert resolve(tiny.folder) == resolve(str(tiny.folder)) == (tiny.folder, expected)
        assert isinstance(open_checkpoint(tiny.folder), HuggingFaceCheckpoint)
        monkeypatch.chdir(tiny.folder)
        assert resolve(".") == (Path(), expected)

    def test_a_folder_named_like_a_hub_id_is_the_folder(
        self, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tiny.folder.parent.parent)
        name = f"{tiny.folder.parent.name}/{tiny.folder.name}"
        assert resolve(name)[1].kind == "folder"

    def test_a_folder_in_the_home_directory(
        self, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tiny.folder.parent))
        assert resolve(f"~/{tiny.folder.name}")[0] == tiny.folder

    @pytest.mark.parametrize("name", ["model.gguf", "sha256-0123abcd"])
    def test_a_gguf_file_whatever_its_ending(self, tiny: TinyCheckpoint, tmp_path: Path, name: str) -> None:
        path = write_gguf(tmp_path / name, tiny)
        assert resolve(path) == (path, Provenance(source=name, kind="gguf"))
        assert isinstance(open_checkpoint(path), GGUFCheckpoint)

    def test_one_file_of_a_checkpoint(self, tiny: TinyCheckpoint) -> None:
        for name in ("model.safetensors", "config.json"):
            with pytest.raises(UsageError, match="is one file of a checkpoint") as caught:
                resolve(tiny.folder / name)
            assert str(tiny.folder) in caught.value.hint

    def test_another_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("GGU")
        with pytest.raises(UsageError, match="is not a GGUF file") as caught:
            resolve(tmp_path / "x.txt")
        assert "package:qwen2.5-coder-1.5b" in caught.value.hint

    def test_a_gguf_file_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "x.gguf").write_text("no")
        with pytest.raises(ModelFileError):
            open_checkpoint(tmp_path / "x.gguf")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b"GGUF")
        (tmp_path / "x").chmod(0)
        with pytest.raises(ModelFileError, match="Permission denied"):
            resolve(tmp_path / "x")


class TestElsewhere:
    def test_a_hub_id(self, tiny: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []

        def fetch(repository: str, **options: Any) -> tuple[Path, str]:
            asked.append((repository, options))
            return tiny.folder, "abc123"

        monkeypatch.setattr(hub, "fetch", fetch)
        checkpoint = open_checkpoint("Qwen/Qwen2.5-0.5B", revision="main", token="t", offline=True)
        assert checkpoint.provenance == Provenance("Qwen/Qwen2.5-0.5B", "hub", revision="abc123")
        assert checkpoint.name == "Qwen2.5-0.5B"
        assert asked == [("Qwen/Qwen2.5-0.5B", {"revision": "main", "token": "t", "offline": True})]

    def test_a_failing_hub_id_says_that_no_folder_has_this_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fetch(repository: str, **options: Any) -> tuple[Path, str]:
            raise DownloadError("no such repository", hint="Check the spelling.")

        monkeypatch.setattr(hub, "fetch", fetch)
        with pytest.raises(DownloadError, match="no such repository") as caught:
            resolve("models/qwen")
        assert caught.value.hint.startswith("Check the spelling.")
        assert "no folder 'models/qwen'" in caught.value.hint

    def test_a_package(self, tiny: TinyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_gguf(tmp_path / "x.gguf", tiny)
        monkeypatch.setattr(packages, "fetch", lambda name, offline: path)
        checkpoint = open_checkpoint("package:qwen2.5-coder-1.5b")
        digest = packages.digest("qwen2.5-coder-1.5b")
        assert checkpoint.provenance == Provenance("package:qwen2.5-coder-1.5b", "package", sha256=digest)
        assert checkpoint.sha256() == digest

    @pytest.mark.parametrize(
        "source",
        [
            "qwen",
            "model.gguf",
            "Qwen/model.gguf",
            "./models/qwen",
            "../qwen",
            "/no/such/folder",
            "a/b/c",
            "~nobody-of-this-name/x",
            "x" * 5000,
            "a\0b",
            "Qwen/Qwen 2.5",
            "",
        ],
    )
    def test_anything_else_is_told_what_is_accepted(
        self, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        if source == "":  # the current folder, and that is no checkpoint
            with pytest.raises(ModelFileError, match=r"no config\.json"):
                open_checkpoint(source)
            return
        with pytest.raises(UsageError, match="there is no file or folder") as caught:
            resolve(source)
        for accepted in ("folder", ".gguf", "hub id", "package:"):
            assert accepted in caught.value.hint
