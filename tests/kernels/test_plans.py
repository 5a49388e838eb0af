"""The tuning file: what was found comes back, and nothing that does not fit is used."""

from __future__ import annotations

import json
import logging

import pytest

from bitqwen import _native
from bitqwen.kernels import plans
from bitqwen.kernels.plans import Choice, Entry, Place, Timing
from bitqwen.kernels.products import ProductKey

ISA = _native.usable_isas()[0]
WINNER = Timing(Choice(ISA, 64, 2), 1e-4)
ENTRY = Entry(
    ProductKey("Q4_K", 2048, 1536),
    "2-4",
    4,
    2048,
    10**6,
    WINNER,
    Timing(Choice(ISA, 32, 0), 2e-4),
    None,
    3e10,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path))


@pytest.fixture
def place():
    return plans.here(2)


def test_what_was_saved_comes_back(place):
    assert plans.load(place) == {}
    path = plans.save(place, [ENTRY])
    assert plans.load(place) == {(ENTRY.key, "2-4"): ENTRY}
    other = Entry(ENTRY.key, "1", 1, 2048, 10**6, WINNER, WINNER, WINNER, 3e10)
    plans.save(place, [other])
    assert set(plans.load(place)) == {(ENTRY.key, "2-4"), (ENTRY.key, "1")}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_each_machine_and_number_of_threads_has_its_own(place):
    plans.save(place, [ENTRY])
    assert plans.load(plans.here(3)) == {}
    assert plans.load(Place("another", place.isa, 2)) == {}


def test_a_row_is_what_the_engine_takes():
    assert plans.rows([ENTRY]) == [("Q4_K", 2048, 1536, "2-4", ISA, 64, 2, "")]


def changed(**changes):
    return lambda document: document | changes


def entry(**changes):
    return lambda document: document | {"entries": [document["entries"][0] | changes]}


def winner(**changes):
    timing = {"choice": {"kernels": ISA, "rows": 64, "tile": 2, "library": ""} | changes, "seconds": 1e-4}
    return entry(winner=timing)


@pytest.mark.parametrize(
    "change",
    [
        changed(version=0),
        changed(cpu="another"),
        changed(threads=3),
        changed(bitqwen="0.0"),
        changed(entries=7),
        changed(entries=[7]),
        changed(entries=[{}]),
        lambda _: [],
        lambda _: None,
        entry(batch="5"),
        entry(batch=[]),
        entry(key=["Q4_K", 2048]),
        entry(key=["Q9_X", 2048, 1536]),
        entry(key=["Q4_K", -1, 1536]),
        entry(key=["Q4_K", True, 1536]),
        entry(key=["Q4_K", 1 << 80, 1536]),
        entry(peak="fast"),
        entry(peak=-1),
        entry(columns=2.5),
        entry(winner=7),
        winner(kernels="sse9"),
        winner(kernels=7),
        winner(rows=8),
        winner(tile=1000),
        winner(library="../../evil.so"),
        winner(library="/tmp/evil.so"),
    ],
)
def test_a_file_that_does_not_fit_is_ignored_with_a_sentence(place, change, caplog):
    path = plans.save(place, [ENTRY])
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with caplog.at_level(logging.WARNING):
        assert plans.load(place) == {}
    assert len(caplog.records) == 1
    assert "is ignored" in caplog.text
    assert "bitqwen kernels tune" in caplog.text


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * (5 << 20), b"NaN", b'{"version": 1}']
)
def test_a_damaged_file_is_ignored(place, data, caplog):
    path = plans.save(place, [ENTRY])
    path.write_bytes(data)
    assert plans.load(place) == {}
    assert "is ignored" in caplog.text
    plans.save(place, [ENTRY])
    assert plans.load(place) == {(ENTRY.key, "2-4"): ENTRY}


def test_generated_kernels_that_are_gone_are_left_out(place, caplog):
    gone = Timing(Choice(ISA, 64, 0, "lut-0123456789abcdef0123.so"), 1e-4)
    entries = [Entry(ENTRY.key, "1", 1, 2048, 10**6, gone, WINNER, None, 3e10), ENTRY]
    plans.save(place, entries)
    assert plans.rows(plans.load(place).values()) == plans.rows([ENTRY])
    assert "Generated kernels are not used" in caplog.text


def test_the_cpu_is_named_by_what_the_system_tells(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: A  CPU\nstepping\t: 1\n\nprocessor\t: 1\nmodel name\t: B\n"
    )
    assert plans.cpu(tmp_path) == "model name A CPU, stepping 1"
    assert plans.cpu(tmp_path / "none")


def test_the_environment_turns_it_off(monkeypatch):
    assert plans.enabled()
    monkeypatch.setenv("BITQWEN_TUNING", "0")
    assert not plans.enabled()
