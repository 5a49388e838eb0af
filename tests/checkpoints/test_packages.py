"""Assembling models from packages: a real pip, an index that is a folder, and models of a few bytes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitqwen.checkpoints import open_checkpoint, packages
from bitqwen.checkpoints.cache import cache_dir
from bitqwen.errors import (
    BitqwenError,
    DownloadError,
    ModelFileError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from bitqwen.gguf import GGUFFile

NAME = "tiny"
PIECES = [random.Random(i).randbytes(1000 + i) for i in range(3)]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, instead of any index on the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "packages"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> packages.PackagedModel:
    whole = b"".join(PIECES)
    tiny = packages.PackagedModel(
        "tiny.gguf",
        len(whole),
        hashlib.sha256(whole).hexdigest(),
        tuple(packages.Part(f"tiny-part-{i}==1.0", ".bin") for i in range(3)),
    )
    monkeypatch.setitem(packages.MODELS, NAME, tiny)
    return tiny


def write_wheel(index: Path, i: int, content: bytes | None = None, **more: bytes) -> Path:
    path = index / f"tiny_part_{i}-1.0-py3-none-any.whl"
    info = f"tiny_part_{i}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"tiny_part_{i}/part.bin", PIECES[i] if content is None else content)
        for name, data in more.items():
            wheel.writestr(f"tiny_part_{i}/{name}.bin", data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny-part-{i}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.usefixtures("model")
class TestFetch:
    def test_parts_become_the_whole(self, index: Path, cache: Path) -> None:
        for i in range(3):
            write_wheel(index, i)
        calls: list[tuple[int, int]] = []
        path = packages.fetch(NAME, progress=lambda done, total: calls.append((done, total)))
        assert path == cache / "tiny.gguf"
        assert path.read_bytes() == b"".join(PIECES)
        assert calls == [(1000, 3003), (2001, 3003), (3003, 3003)]
        assert visible(cache) == ["tiny.gguf"]

    def test_what_is_there_is_not_fetched_again(
        self, index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for i in range(3):
            write_wheel(index, i)
        packages.fetch(NAME)

        def no_pip(*args: object, **kwargs: object) -> None:
            raise AssertionError(args)

        monkeypatch.setattr(subprocess, "run", no_pip)
        assert packages.fetch(NAME) == packages.fetch(NAME, offline=True) == cache / "tiny.gguf"

    def test_a_cut_file_is_replaced(self, index: Path, cache: Path) -> None:
        for i in range(3):
            write_wheel(index, i)
        cache.mkdir(parents=True)
        (cache / "tiny.gguf").write_bytes(PIECES[0])
        assert packages.fetch(NAME).read_bytes() == b"".join(PIECES)

    def test_an_interrupted_download_resumes(self, index: Path, cache: Path) -> None:
        first, second = (write_wheel(index, i) for i in range(2))
        with pytest.raises(DownloadError, match=r"pip could not download tiny-part-2==1\.0: ERROR") as caught:
            packages.fetch(NAME)
        assert "goes on from there" in caught.value.hint
        assert not (cache / "tiny.gguf").exists()
        first.unlink()
        second.unlink()
        write_wheel(index, 2)
        assert packages.fetch(NAME).read_bytes() == b"".join(PIECES)
        assert visible(cache) == ["tiny.gguf"]

    def test_what_a_killed_process_left_does_not_matter(self, index: Path, cache: Path) -> None:
        for i in range(3):
            write_wheel(index, i)
        scratch = cache / ".tiny.gguf.parts" / "scratch"
        scratch.mkdir(parents=True)
        (scratch / "tiny_part_0-1.0-py3-none-any.whl").write_bytes(b"half")
        (cache / ".tiny.gguf.part").write_bytes(b"half")
        assert packages.fetch(NAME).read_bytes() == b"".join(PIECES)
        assert visible(cache) == ["tiny.gguf"]

    def test_another_content_is_refused_and_fetched_anew(self, index: Path, cache: Path) -> None:
        for i in range(3):
            write_wheel(index, i)
        write_wheel(index, 1, PIECES[1][::-1])
        with pytest.raises(ModelFileError, match=r"tiny\.gguf has SHA-256 .* was expected"):
            packages.fetch(NAME)
        assert not (cache / "tiny.gguf").exists()
        write_wheel(index, 1)
        assert packages.fetch(NAME).read_bytes() == b"".join(PIECES)

    def test_a_wheel_cannot_fill_the_disk(self, index: Path, cache: Path) -> None:
        write_wheel(index, 0, bytes(100_000_000))  # a hundred kilobytes, packed
        with pytest.raises(DownloadError, match=r"tiny-part-0==1\.0 holds more bytes than the model"):
            packages.fetch(NAME)
        assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) == 0

    def test_a_wheel_with_two_candidates_is_refused(self, index: Path) -> None:
        write_wheel(index, 0, other=b"x")
        with pytest.raises(DownloadError, match=r"has 2 files ending in \.bin; one was expected"):
            packages.fetch(NAME)

    def test_a_damaged_wheel_is_refused(self, index: Path) -> None:
        path = write_wheel(index, 0)
        content = bytearray(path.read_bytes())
        begin = content.find(PIECES[0][:16])  # random bytes are stored as they are
        content[begin + 100] ^= 1
        path.write_bytes(content)
        with pytest.raises(
            DownloadError, match=r"tiny-part-0==1\.0: its wheel is damaged|could not download"
        ):
            packages.fetch(NAME)

    def test_a_python_without_pip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
        with pytest.raises(DownloadError, match="does not have") as caught:
            packages.fetch(NAME)
        assert "ensurepip" in caught.value.hint

    def test_offline(self) -> None:
        with pytest.raises(DownloadError, match=r"package:tiny is not in the cache .* offline mode"):
            packages.fetch(NAME, offline=True)

    def test_too_little_space(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(packages.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(ResourceError, match=r"tiny\.gguf needs 0\.3 GB .* has 0\.0 GB free") as caught:
            packages.fetch(NAME)
        assert "BITQWEN_CACHE" in caught.value.hint

    def test_a_cache_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file where a folder is wanted")
        with pytest.raises(ResourceError, match="cannot write") as caught:
            packages.fetch(NAME)
        assert "BITQWEN_CACHE" in caught.value.hint


def test_an_unknown_name_lists_the_known_ones() -> None:
    for call in (packages.fetch, packages.digest):
        with pytest.raises(UsageError, match="'nothing'") as caught:
            call("nothing")
        assert "qwen2.5-coder-1.5b, smollm2-135m, deepseek-r1-qwen-7b-head" in caught.value.hint


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("BITQWEN_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("BITQWEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "bitqwen"


@pytest.mark.real
class TestRealModels:
    def test_the_coder_model_is_a_whole_qwen2(self, real_model: Path) -> None:
        assert real_model.stat().st_size == packages.MODELS["qwen2.5-coder-1.5b"].nbytes
        checkpoint = open_checkpoint(real_model)
        assert checkpoint.config["num_hidden_layers"] == 28
        tokenizer = checkpoint.tokenizer()
        assert tokenizer.stop_ids == (151645, 151643)
        assert len(tokenizer.tokens) == checkpoint.config["vocab_size"] == 151936

    def test_another_architecture_is_refused_by_name(self, packaged_model: Callable[[str], Path]) -> None:
        with pytest.raises(UnsupportedModelError, match=r"architecture 'llama'; supported: qwen2"):
            open_checkpoint(packaged_model("smollm2-135m"))

    def test_the_beginning_of_a_file_is_refused_as_a_model(
        self, packaged_model: Callable[[str], Path]
    ) -> None:
        with pytest.raises(BitqwenError, match="is cut off"):
            GGUFFile(packaged_model("deepseek-r1-qwen-7b-head"))
