"""Fetching from a hub of our own; in new processes, because huggingface-hub reads its settings once."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bitqwen.checkpoints import hub as hub_module
from bitqwen.errors import DownloadError, ResourceError
from helpers.fake_hub import FakeHub, FakeRepository, fake_hub
from helpers.tiny_checkpoint import TinyCheckpoint

NAME = "Owner/Tiny-Qwen2"

OPEN = """
import json, sys
from bitqwen.checkpoints import open_checkpoint
from bitqwen.errors import BitqwenError

def answer(source, options):
    try:
        checkpoint = open_checkpoint(source, **options)
    except BitqwenError as error:
        return {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    origin = checkpoint.provenance
    about = {"kind": origin.kind, "source": origin.source, "revision": origin.revision}
    return about | {"folder": str(checkpoint.folder), "tensors": checkpoint.names()}

print(json.dumps([answer(sys.argv[1], options) for options in json.loads(sys.argv[2])]))
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub() as running:
        yield running


@pytest.fixture
def repository(tiny_checkpoint: Callable[..., TinyCheckpoint], hub: FakeHub) -> FakeRepository:
    tiny = tiny_checkpoint(shards=2)
    hub.repositories[NAME] = FakeRepository(tiny.folder)
    return hub.repositories[NAME]


@pytest.fixture
def open_hub(hub: FakeHub, tmp_path: Path) -> Callable[..., Any]:
    """Opens a source in a new process, once or several times; the cache is the test's."""

    def run(
        source: str = NAME, *calls: dict[str, Any], environment: dict[str, str] | None = None, **options: Any
    ) -> Any:
        result = subprocess.run(
            [sys.executable, "-c", OPEN, source, json.dumps(calls or [options])],
            env=hub.environment(tmp_path / "cache") | (environment or {}),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        answers = json.loads(result.stdout.splitlines()[-1])
        return answers if calls else answers[0]

    return run


class TestFetching:
    def test_a_checkpoint_is_fetched_with_its_commit(
        self, repository: FakeRepository, open_hub: Callable[..., Any], hub: FakeHub
    ) -> None:
        for name in ("pytorch_model.bin", "model.onnx", "original/consolidated.safetensors"):
            (repository.folder / name).parent.mkdir(exist_ok=True)
            (repository.folder / name).write_bytes(b"not wanted")
        answer = open_hub()
        assert answer["kind"] == "hub"
        assert answer["source"] == NAME
        assert answer["revision"] == repository.commit
        assert len(answer["tensors"]) == 26
        fetched = {name for name, _ in hub.downloads}
        assert fetched == {
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        }
        for name in fetched:
            assert (Path(answer["folder"]) / name).read_bytes() == (repository.folder / name).read_bytes()

    def test_what_is_in_the_cache_is_not_fetched_again(
        self, repository: FakeRepository, open_hub: Callable[..., Any], hub: FakeHub
    ) -> None:
        first = open_hub()
        hub.downloads.clear()
        calls: list[dict[str, Any]] = [{}, {"offline": True}, {"revision": repository.commit}]
        assert open_hub(NAME, *calls) == [first] * 3
        assert open_hub(environment={"HF_HUB_OFFLINE": "1"}) == first
        assert open_hub(environment={"HF_ENDPOINT": "http://127.0.0.1:1"}) == first
        assert not hub.downloads

    def test_a_broken_connection_is_taken_up_where_it_broke(
        self, tiny_checkpoint: Callable[..., TinyCheckpoint], open_hub: Callable[..., Any], hub: FakeHub
    ) -> None:
        name = "model-00002-of-00002.safetensors"
        # huggingface-hub keeps pieces of 10 MiB.
        folder = tiny_checkpoint(shards=2, intermediate=4096, dtype="F32").folder
        hub.repositories[NAME] = FakeRepository(folder, cut={name: 11_000_000})
        answer = open_hub()
        assert (Path(answer["folder"]) / name).read_bytes() == (folder / name).read_bytes()
        assert [begin for file, begin in hub.downloads if file == name] == [0, 10 << 20]

    def test_an_interrupted_download_goes_on_with_what_is_missing(
        self, repository: FakeRepository, open_hub: Callable[..., Any], hub: FakeHub
    ) -> None:
        name = "model-00002-of-00002.safetensors"
        repository.cut[name] = 1000
        repository.broken_after_cut = True
        failed = open_hub()
        assert failed["error"] == "DownloadError"
        assert "Run the command again" in failed["hint"]
        kept = {file for file, _ in hub.downloads} - {name}
        assert "model-00001-of-00002.safetensors" in kept
        hub.broken.clear()
        hub.downloads.clear()
        answer = open_hub()
        assert (Path(answer["folder"]) / name).read_bytes() == (repository.folder / name).read_bytes()
        assert not kept & {file for file, _ in hub.downloads}


class TestErrors:
    @pytest.mark.usefixtures("repository")
    def test_no_such_repository(self, open_hub: Callable[..., Any]) -> None:
        answer = open_hub("Owner/Nothing")
        assert answer["error"] == "DownloadError"
        assert "no repository Owner/Nothing" in answer["message"]
        assert "--token" in answer["hint"]
        assert "no folder 'Owner/Nothing'" in answer["hint"]

    @pytest.mark.usefixtures("repository")
    def test_no_such_revision(self, open_hub: Callable[..., Any]) -> None:
        answer = open_hub(revision="v9")
        assert answer["error"] == "DownloadError"
        assert f"{NAME} has no revision 'v9'" in answer["message"]

    def test_gated(self, repository: FakeRepository, open_hub: Callable[..., Any]) -> None:
        repository.token, repository.gated = "secret", True
        answer = open_hub()
        assert answer["error"] == "DownloadError"
        assert "is gated" in answer["message"]
        assert "HF_TOKEN" in answer["hint"]
        assert open_hub(token="secret")["revision"] == repository.commit
        assert open_hub(environment={"HF_TOKEN": "secret"})["revision"] == repository.commit

    def test_private(self, repository: FakeRepository, open_hub: Callable[..., Any]) -> None:
        repository.token = "secret"
        answer = open_hub(token="wrong")
        assert "or it is private" in answer["message"]

    @pytest.mark.parametrize("options", [{"offline": True}, {"environment": {"HF_HUB_OFFLINE": "1"}}])
    @pytest.mark.usefixtures("repository")
    def test_offline_and_not_in_the_cache(
        self, open_hub: Callable[..., Any], options: dict[str, Any], hub: FakeHub
    ) -> None:
        answer = open_hub(**options)
        assert answer["error"] == "DownloadError"
        assert f"{NAME} is not in the local cache" in answer["message"]
        assert "offline mode" in answer["message"]
        assert "HF_HUB_OFFLINE" in answer["hint"]
        assert not hub.downloads

    @pytest.mark.usefixtures("repository")
    def test_no_network(self, open_hub: Callable[..., Any]) -> None:
        answer = open_hub(environment={"HF_ENDPOINT": "http://127.0.0.1:1"})
        assert answer["error"] == "DownloadError"
        assert "the hub cannot be reached: " in answer["message"]
        assert "Check the network" in answer["hint"]

    def test_only_pickled_weights(self, repository: FakeRepository, open_hub: Callable[..., Any]) -> None:
        for path in repository.folder.glob("model*"):
            path.unlink()
        (repository.folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
        answer = open_hub()
        assert answer["error"] == "UnsupportedModelError"
        assert "pickled weights (pytorch_model.bin)" in answer["message"]

    def test_only_gguf_files(self, repository: FakeRepository, open_hub: Callable[..., Any]) -> None:
        for path in repository.folder.glob("model*"):
            path.unlink()
        (repository.folder / "tiny-q4_0.gguf").write_bytes(b"GGUF")
        answer = open_hub()
        assert answer["error"] == "DownloadError"
        assert "holds GGUF files" in answer["message"]
        assert "tiny-q4_0.gguf" in answer["hint"]

    def test_no_weights_at_all(self, repository: FakeRepository, open_hub: Callable[..., Any]) -> None:
        for path in repository.folder.glob("model*"):
            path.unlink()
        assert "no weights in safetensors" in open_hub()["message"]


class TestTranslation:
    """What a server cannot be made to do."""

    def fail_with(self, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        def raise_it(*args: Any, **kwargs: Any) -> str:
            raise error

        monkeypatch.setattr("huggingface_hub.snapshot_download", raise_it)

    def test_a_full_disk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(ResourceError, match="disk is full"):
            hub_module.fetch(NAME)

    def test_an_http_error_of_whatever_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = type("HTTPError", (Exception,), {"__module__": "httpx._exceptions"})
        self.fail_with(
            monkeypatch, type("ReadTimeout", (base,), {"__module__": "elsewhere"})("timed out\nmore")
        )
        with pytest.raises(DownloadError, match=f"fetching {NAME} failed: timed out\n") as caught:
            hub_module.fetch(NAME)
        assert "again" in caught.value.hint

    def test_a_fault_of_our_own_is_not_hidden(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fail_with(monkeypatch, ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            hub_module.fetch(NAME)

    def test_what_is_no_id(self) -> None:
        with pytest.raises(DownloadError, match="is no hub id"):
            hub_module.fetch("a--b/..")


class TestReachable:
    def test_it_is_and_it_is_not(self, repository: FakeRepository, hub: FakeHub, tmp_path: Path) -> None:
        code = "import sys; from bitqwen.checkpoints.hub import reachable; print(reachable(sys.argv[1]))"
        for endpoint, name, expected in [
            (hub.endpoint, NAME, "True"),
            (hub.endpoint, "Owner/Nothing", "False"),
            ("http://127.0.0.1:1", NAME, "False"),
        ]:
            environment = hub.environment(tmp_path) | {"HF_ENDPOINT": endpoint}
            result = subprocess.run(
                [sys.executable, "-c", code, name], env=environment, capture_output=True, text=True
            )
            assert result.stdout.strip() == expected, result.stderr
        assert not hub.downloads
