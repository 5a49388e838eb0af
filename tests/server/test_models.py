"""Several models: found by name, loaded on first use, unloaded when idle, within a budget."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import LiveServer

from bitqwen.errors import ResourceError, UsageError
from bitqwen.server.catalog import Catalog, Offer
from bitqwen.server.served_model import ServedModel
from bitqwen.server.settings import ServerSettings

LIMITS = {"context": 256, "cache_positions": 256, "threads": 1}


@pytest.fixture
def folder(tiny_gguf: Path, tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        shutil.copy(tiny_gguf, tmp_path / f"{name}.gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, or so it says")
    (tmp_path / "notes.txt").write_text("no model")
    return tmp_path


class Several:
    """A server of a folder, and how its models come and go."""

    def __init__(self, live: LiveServer, http: httpx.Client) -> None:
        self.live = live
        self.http = http
        self.residents = live.service.residents

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "the fox", "temperature": 0, "max_tokens": 4} | fields
        return self.http.post("/v1/completions", json=body)

    def states(self) -> dict[str, str]:
        return {card["id"]: card["state"] for card in self.http.get("/v1/models").json()["data"]}

    @contextmanager
    def at_work(self, model: str) -> Iterator[None]:
        """A request of a model that has begun and does not end before the block does."""
        assert self.ask(model).status_code == 200
        served = self.residents.find(model)
        assert served is not None
        begun, end = threading.Event(), threading.Event()

        def hold(seconds: float, tokens: int) -> None:
            begun.set()
            assert end.wait(30)

        with ThreadPoolExecutor(1) as pool:
            served.scheduler.loop.on_step = hold
            answer = pool.submit(self.ask, model)
            try:
                assert begun.wait(30)
                yield
            finally:
                end.set()
            assert answer.result().status_code == 200

    def bytes_of_one(self) -> int:
        return self.live.service._estimate(self.live.service.offer("one"))


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Several]]:
    with ExitStack() as stack:

        def start_(**settings: Any) -> Several:
            given = {"models_dir": folder, **LIMITS} | settings
            live = stack.enter_context(LiveServer(None, **given))
            http = httpx.Client(base_url=live.url, timeout=60)
            return Several(live, stack.enter_context(http))

        yield start_


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_request_chooses_and_loads(start: Callable[..., Several]) -> None:
    server = start(alias=["small=two", "again=three.gguf"])
    assert server.states() == dict.fromkeys(("broken", "one", "three", "two"), "unloaded")
    assert server.http.get("/health").json() == {"status": "ok", "models": {}}
    assert server.ask("one").json()["model"] == "one"
    assert server.ask("small").json()["model"] == "two"
    assert server.states() == {"broken": "unloaded", "one": "loaded", "three": "unloaded", "two": "loaded"}
    card = server.http.get("/v1/models/again").json()
    assert (card["id"], card["aliases"], card["context_length"]) == ("three", ["again"], None)
    assert server.http.get("/v1/models/one").json()["context_length"] == 256
    metrics = server.http.get("/metrics").text
    assert 'bitqwen_model_load_seconds_count{model="two"} 1.0' in metrics
    assert 'bitqwen_model_bytes{model="one"}' in metrics


def test_every_interface_says_in_its_own_way_that_there_is_no_such_model(
    start: Callable[..., Several], folder: Path
) -> None:
    server = start()
    messages = [{"role": "user", "content": "Hello"}]
    error = server.http.post("/v1/chat/completions", json={"model": "four", "messages": messages})
    assert error.status_code == 404
    assert (error.json()["error"]["code"], error.json()["error"]["param"]) == ("model_not_found", "model")
    assert "one, three, two" in error.json()["error"]["message"]
    error = server.http.post("/v1/messages", json={"model": "four", "messages": messages, "max_tokens": 1})
    assert (error.status_code, error.json()["error"]["type"]) == (404, "not_found_error")
    assert server.http.get("/v1/models/..%2Fsecret").status_code == 404
    shutil.copy(folder / "one.gguf", folder / "four.gguf")  # a file that comes later is found
    assert server.ask("four").status_code == 200


def test_where_there_are_several_one_must_be_named(start: Callable[..., Several]) -> None:
    refused = start().http.post("/tokenize", json={"content": "the fox"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_a_broken_file_is_the_request_s_misfortune_only(start: Callable[..., Several]) -> None:
    server = start()
    for _ in range(2):
        answer = server.ask("broken")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_load_failed")
    assert server.ask("one").status_code == 200
    assert server.states()["broken"] == "unloaded"


@pytest.mark.parametrize("remove", [False, True])
def test_a_file_that_is_cut_off_or_removed_under_the_server_changes_nothing_until_it_is_loaded_again(
    start: Callable[..., Several], folder: Path, remove: bool
) -> None:
    server = start(prefix_cache=False, keep_alive="forever")
    path = folder / "one.gguf"
    prompts = ["the fox", "the quick brown fox jumps over the lazy dog " * 3]
    before = [server.ask("one", prompt=prompt).json()["choices"] for prompt in prompts]
    if remove:
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(1000)
    again = [server.ask("one", prompt=prompt).json()["choices"] for prompt in prompts]
    assert again == before
    assert server.http.get("/health").json()["status"] == "ok"
    assert server.states()["one"] == "loaded"
    if not remove:
        fresh = start().ask("one")
        assert (fresh.status_code, fresh.json()["error"]["code"]) == (503, "model_load_failed")
    else:
        assert start().ask("one").status_code == 404


def test_an_idle_model_is_unloaded_and_comes_back(start: Callable[..., Several]) -> None:
    server = start(keep_alive="50ms")
    first = server.ask("one").json()["choices"]
    until(lambda: server.states()["one"] == "unloaded")
    assert server.ask("one").json()["choices"] == first


def test_a_model_at_work_stays(start: Callable[..., Several]) -> None:
    server = start(keep_alive=0.05)
    with server.at_work("one"):
        assert server.ask("two").status_code == 200
        until(lambda: server.states()["two"] == "unloaded")
        assert server.states()["one"] == "loaded"
    until(lambda: server.states()["one"] == "unloaded")


def test_a_budget_makes_idle_models_give_way_and_refuses_when_all_are_busy(
    start: Callable[..., Several],
) -> None:
    need = start().bytes_of_one()
    server = start(memory_budget=int(2.5 * need))
    assert [server.ask(name).status_code for name in ("one", "two", "three")] == [200, 200, 200]
    assert {name for name, state in server.states().items() if state == "loaded"} == {"two", "three"}
    with server.at_work("two"), server.at_work("three"):
        refused = server.ask("one")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_memory")
        assert "two" in refused.json()["error"]["message"]
        assert "retry-after" in refused.headers
    until(lambda: server.ask("one").status_code == 200)


def test_a_model_larger_than_the_budget_unloads_nobody(start: Callable[..., Several]) -> None:
    server = start(memory_budget=1000)
    refused = server.ask("one")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "out_of_memory")
    assert "retry-after" not in refused.headers


def test_where_the_machine_has_too_little_memory_idle_models_give_way(
    start: Callable[..., Several], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    assert server.ask("one").status_code == 200
    real = server.residents._load

    def tight(offer: Offer) -> ServedModel:
        if server.residents.loaded():
            raise ResourceError("The model needs more memory than there is.")
        return real(offer)

    monkeypatch.setattr(server.residents, "_load", tight)
    assert server.ask("two").status_code == 200
    assert {name for name, state in server.states().items() if state == "loaded"} == {"two"}


def test_a_load_holds_up_nobody_and_may_be_left(
    start: Callable[..., Several], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    assert server.ask("one").status_code == 200
    real, go_on, begun = server.residents._load, threading.Event(), threading.Semaphore(0)

    def slow(offer: Offer) -> ServedModel:
        begun.release()
        assert go_on.wait(30)
        return real(offer)

    monkeypatch.setattr(server.residents, "_load", slow)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(server.ask, "two") for _ in range(2)]
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.live.url}/v1/completions", json={"model": "two", "prompt": "x"}, timeout=0.2)
        assert begun.acquire(timeout=30)
        assert server.ask("one").status_code == 200
        assert server.states()["two"] == "loading"
        resident = server.residents._by_name["two"]
        until(lambda: resident.users == 2)  # the third one left
        go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert not begun.acquire(blocking=False)  # one load for all


def test_memory_comes_back(start: Callable[..., Several]) -> None:
    import weakref

    server = start(keep_alive="forever")
    assert server.ask("one").status_code == 200
    (served,) = server.residents.loaded()
    engine = weakref.ref(served.language_model.model)
    del served  # before it is unloaded, which would find it in use here otherwise
    server.residents._keep_alive = 0.01
    assert server.ask("one").status_code == 200
    until(lambda: engine() is None)


def test_a_model_that_is_always_there_beside_the_folder(
    start: Callable[..., Several], folder: Path, tiny_gguf: Path
) -> None:
    settings = {"model": str(folder / "one.gguf"), "keep_alive": 0, "alias": ["main", f"far={tiny_gguf}"]}
    server = start(**settings)
    until(lambda: server.http.get("/health").json()["status"] == "ok")
    assert server.ask("main").json()["model"] == "one"
    assert server.ask("two").status_code == 200
    assert server.ask("far").json()["model"] == "far"
    until(lambda: {name for name, state in server.states().items() if state == "loaded"} == {"one"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no model"),
        ({"models_dir": Path("nowhere")}, "no folder nowhere"),
        ({"alias": ["a=nowhere.gguf"]}, "stands for nowhere.gguf"),
        ({"models_dir": Path(__file__).parent, "alias": ["a"]}, "which model it stands for"),
    ],
)
def test_settings_that_lead_nowhere_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Catalog(ServerSettings(**settings))


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("10m", 600), ("90", 90), ("1.5h", 5400), ("forever", None), (0, 0), ("250ms", 0.25), ("2d", 172800)],
)
def test_durations(given: Any, seconds: float | None) -> None:
    assert ServerSettings(keep_alive=given).keep_alive == seconds


@pytest.mark.parametrize("given", ["soon", "-1", "10 parsecs", ""])
def test_durations_that_are_none(given: str) -> None:
    with pytest.raises(ValueError, match="keep_alive"):
        ServerSettings(keep_alive=given)
