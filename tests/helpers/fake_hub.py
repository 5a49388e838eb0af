"""A model hub on this machine, as far as huggingface-hub asks one for a snapshot."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FakeRepository:
    """A repository's one commit.

    Attributes:
        folder: its files.
        token: what a reader must send; None for everybody.
        gated: whether a reader without it is told that the repository is gated.
        cut: file name -> how many bytes of it are sent before the connection breaks, once.
        broken_after_cut: whether requests for that file fail from then on, until the next run.
    """

    folder: Path
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    token: str | None = None
    gated: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    broken_after_cut: bool = False

    def files(self) -> dict[str, Path]:
        """Name -> path of every file, subfolders included."""
        return {
            path.relative_to(self.folder).as_posix(): path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


@dataclass
class FakeHub:
    """The running server.

    Attributes:
        endpoint: its address.
        repositories: by ``owner/name``.
        downloads: (file name, first byte) of each GET for a file's contents.
    """

    endpoint: str
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    downloads: list[tuple[str, int]] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def environment(self, cache: Path) -> dict[str, str]:
        """For a process that is to use this hub and a cache of its own."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        return clean | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _fail(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _repository(self, parts: list[str], revision: str | None) -> FakeRepository | None:
        repository = self.hub.repositories.get("/".join(parts))
        if repository is None:
            self._fail(404, "RepoNotFound")
            return None
        if repository.token and self.headers.get("Authorization") != f"Bearer {repository.token}":
            self._fail(403 if repository.gated else 401, "GatedRepo" if repository.gated else "RepoNotFound")
            return None
        if revision not in (None, "main", repository.commit):
            self._fail(404, "RevisionNotFound")
            return None
        return repository

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api(parts[2:4], parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            repository = self._repository(parts[:2], parts[3])
            if repository is not None:
                self._file(repository, "/".join(parts[4:]))
        else:
            self._fail(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _api(self, name: list[str], what: list[str]) -> None:
        repository = self._repository(name, what[1] if len(what) > 1 else None)
        if repository is None:
            return
        files = repository.files()
        if what[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": path, "size": file.stat().st_size, "oid": _etag(file)}
                for path, file in files.items()
            ]
            self._json(entries)
        else:
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": "/".join(name), "sha": repository.commit, "siblings": siblings})

    def _file(self, repository: FakeRepository, name: str) -> None:
        path = repository.files().get(name)
        if path is None:
            self._fail(404, "EntryNotFound")
            return
        content = path.read_bytes()
        begin = 0
        if self.command == "GET":
            if name in self.hub.broken:
                self._fail(500, "Broken")
                return
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.hub.downloads.append((name, begin))
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", repository.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command != "GET":
            return
        if (cut := repository.cut.pop(name, None)) is None:
            self.wfile.write(content[begin:])
            return
        if repository.broken_after_cut:
            self.hub.broken.add(name)
        self.wfile.write(content[begin : begin + cut])
        self.wfile.flush()
        self.close_connection = True


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()  # as git names a small file


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Runs a hub without repositories; add to ``repositories``."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
