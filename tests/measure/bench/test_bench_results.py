from __future__ import annotations

import csv
import io
import json
import math

import pytest

from bitqwen.errors import ModelFileError, UsageError
from bitqwen.measure.bench import tables
from bitqwen.measure.bench.plan import Side, Test
from bitqwen.measure.bench.results import Report, Row

MACHINE = {
    "date": "2026-01-02",
    "cpu": "A CPU",
    "cores": 2,
    "isa": ["avx2"],
    "memory_gib": 4.0,
    "system": "Linux",
}
FACTS = {
    "isa": "avx2",
    "decode_bytes": 1000,
    "kv_bytes": 10,
    "body_macs": 500,
    "energy": "RAPL",
    "energy_reason": "no counter",
}


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"x" * 10)
    return path


def row(model, kind="tg", seconds=(2.0, 1.0), depth=0, engine="bitqwen", facts=FACTS, peer=False, **more):
    side = Side(engine, model, 1, peer=peer or engine != "bitqwen")
    return Row(side, Test(kind, 4, depth), list(seconds), facts=facts, **more)


def report(*rows):
    return Report(MACHINE, list(rows), {1: [9000.0, 10000.0]}, {1: [4000.0]})


def test_speed_is_the_mean_of_the_repetitions(model):
    one = row(model)
    assert one.speeds == [2, 4]
    assert (one.mean, one.best) == (3, 4)
    assert one.sigma == pytest.approx(math.sqrt(2))


def test_bytes_are_weights_and_the_cache_on_the_way(model):
    # Positions before the four tokens: 100, 101, 102, 103.
    one = row(model, depth=100, bandwidth=10000.0)
    assert one.bytes_per_token == 1000 + 10 * 101.5
    assert one.read_rate == 3 * one.bytes_per_token
    assert one.bandwidth_share == pytest.approx(one.read_rate / 10000)
    assert one.int8_share is None


def test_prefill_is_compared_with_the_int8_peak(model):
    one = row(model, kind="pp", int8_rate=3000.0)
    assert one.int8_share == pytest.approx(500 * 3 / 3000)
    assert one.bytes_per_token is None
    assert row(model, kind="pp", int8_rate=0.0).int8_share is None


def test_a_peers_bytes_are_not_guessed(model):
    assert row(model, engine="llama-cpp-python", facts={"version": "1"}).bytes_per_token is None


def test_a_peer_on_another_model_is_compared_with_each_of_ours(model, tmp_path):
    wide, small = tmp_path / "f16.gguf", tmp_path / "small.gguf"
    for path in (wide, small):
        path.write_bytes(b"x")
    rows = [
        row(model, joules=[4.0]),
        row(small, seconds=(1.0, 0.5), joules=[2.0]),
        row(wide, seconds=(4.0, 2.0), joules=[8.0], peer=True),
    ]
    text = tables.text(report(*rows), "md")
    assert "| 2.00x (tiny), 4.00x (small) | 0.50x (tiny), 0.25x (small) |" in text
    assert [each["peer"] for each in report(*rows).as_json()["rows"]] == [False, False, True]


def test_a_coarse_counter_says_nothing_of_a_short_test(model):
    short, long = row(model, joules=[36.0, 0.0], least_joules=360.0), row(model, joules=[360.0, 396.0])
    assert short.joules_per_token is None
    assert "360 J" in short.energy_reason
    assert "larger -n" in tables.text(report(short), "md")
    assert long.joules_per_token == pytest.approx(94.5)
    assert long.energy_reason == ""


def test_energy_is_measured_or_absent(model):
    assert row(model).joules_per_token is None
    assert row(model, joules=[8.0, 16.0]).joules_per_token == 3


def test_markdown_has_the_machine_the_spread_and_the_reason(model):
    text = tables.text(report(row(model, bandwidth=10000.0)), "md")
    assert text.startswith("A CPU (avx2), 2 CPUs")
    assert "| 3.00 ± 1.41 | 4.00 |" in text
    assert "not readable here: no counter" in text
    assert "speed-up" not in text


def test_more_than_the_memorys_bandwidth_is_explained(model):
    one = row(model, facts={**FACTS, "decode_bytes": 1000}, bandwidth=10_000.0)
    assert "More than 100 %" not in tables.markdown(report(one))
    one.bandwidth = one.read_rate / 2
    text = tables.markdown(report(one))
    assert "200%" in text
    assert "More than 100 %" in text


def test_markdown_with_a_peer_has_ratios(model):
    peer = row(model, engine="llama-cpp-python", seconds=(4.0, 2.0), facts={"version": "1.2"})
    text = tables.text(report(row(model), peer), "md")
    assert "llama-cpp-python 1.2" in text
    assert "2.00x" in text


def test_other_forms_carry_the_machine_too(model):
    whole = report(row(model), row(model, kind="pp"))
    assert json.loads(tables.text(whole, "json"))["machine"] == MACHINE
    lines = [json.loads(line) for line in tables.text(whole, "jsonl").splitlines()]
    assert [line["test"] for line in lines] == ["tg4", "pp4"]
    records = list(csv.DictReader(io.StringIO(tables.text(whole, "csv"))))
    assert len(records) == 2
    for record in (*lines, *records):
        assert record["cpu"] == "A CPU"
        assert float(record["sigma"]) == pytest.approx(math.sqrt(2))


def test_compare(model, tmp_path):
    for name, seconds in (("a", (2.0, 2.1, 1.9)), ("b", (1.0, 1.05, 0.95))):
        path = tmp_path / f"{name}.json"
        path.write_text(tables.text(report(row(model, seconds=seconds)), "json"))
    text = tables.compare(tmp_path / "a.json", tmp_path / "b.json")
    assert "| 2.000 | yes |" in text
    assert "| 1.000 | no |" in tables.compare(tmp_path / "a.json", tmp_path / "a.json")


def test_compare_refuses_what_is_no_report(model, tmp_path):
    good, other, bad = tmp_path / "good.json", tmp_path / "other.json", tmp_path / "bad.json"
    good.write_text(tables.text(report(row(model)), "json"))
    other.write_text(tables.text(report(row(model, kind="pp")), "json"))
    for content in ("{", "[]", '{"rows": []}'):
        bad.write_text(content)
        with pytest.raises(ModelFileError):
            tables.compare(good, bad)
    with pytest.raises(UsageError, match="no row in common"):
        tables.compare(good, other)
