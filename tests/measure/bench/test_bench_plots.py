from __future__ import annotations

import pytest

from bitqwen.errors import UsageError

pytest.importorskip("matplotlib")

from bitqwen.measure.bench import plots

QUALITY = {
    "prose": {"kl": 0.2, "kl_low": -0.1, "kl_high": 0.3},
    "code": {"kl": 0.05, "kl_low": 0.04, "kl_high": 0.07},
}


def row(
    model: str, bits: float, speed: float, depth: int = 0, engine: str = "bitqwen", **more: object
) -> dict:
    return {
        "engine": engine,
        "model": model,
        "model_bytes": int(bits * 1e8),
        "bits_per_weight": bits,
        "quality": QUALITY,
        "threads": 2,
        "kv": "f16",
        "kind": "tg",
        "tokens": 8,
        "depth": depth,
        "tokens_per_second": speed,
        "sigma": 1.0,
        "bytes_per_token": bits * 1e8,
        "weight_bytes": bits * 1e8,
        "macs_per_token": 1.5e9,
    } | more


@pytest.fixture
def document() -> dict:
    rows = [
        row(f"coder-w{bits}.gguf", bits, 100 / bits - depth / 100, depth)
        for bits in (2, 4)
        for depth in (0, 512)
    ]
    rows += [row("coder-w4.gguf", 4, 20, engine="llama-cpp-python", macs_per_token=None, sigma=None)]
    rows += [row("coder-w2.gguf", 2, 300, kind="pp", tokens=512, bytes_per_token=None)]
    return {
        "machine": {"cpu": "A CPU", "cores": 2, "date": "2026-01-02T03:04"},
        "rows": rows,
        "read_gb_per_second": {"2": [20.0, 19.0]},
        "int8_gmac_per_second": {"2": [500.0]},
    }


def test_every_picture_is_drawn_and_says_what_it_shows(document, tmp_path):
    path = tmp_path / "all.svg"
    assert plots.draw([document], path) == list(plots.PANELS)
    text = path.read_text()
    for words in (
        "A CPU, 2 CPUs, 2026-01-02",
        "bits per weight",
        "file, GB",
        "int8 peak 500",
        "bandwidth 20.0",
    ):
        assert words in text
    for words in (">w2<", ">w4<", "llama-cpp-python", "prose", "code", "tokens in the context"):
        assert words in text
    again = tmp_path / "again.svg"
    plots.draw([document], again)
    assert again.read_bytes() == path.read_bytes()


def test_one_picture_as_png(document, tmp_path):
    assert plots.draw([document], tmp_path / "one.png", ["speed"]) == ["speed"]
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_what_has_no_data_is_left_out(document, tmp_path):
    for each in document["rows"]:
        each |= {"quality": None, "depth": 0}
    document["int8_gmac_per_second"] = {"2": []}
    assert plots.draw([document], tmp_path / "out.svg") == ["speed"]
    document["rows"] = document["rows"][:1]
    with pytest.raises(UsageError, match="nothing to draw"):
        plots.draw([document], tmp_path / "none.svg")
    assert not (tmp_path / "none.svg").exists()


def test_points_of_the_roofline():
    # Decode: 1.5e9 multiply-adds of 2e8 bytes. Prefill of 1024 tokens reads the weights twice.
    assert plots.intensity(row("a", 2, 10)) == (7.5, 1.5e10)
    assert plots.intensity(row("a", 2, 10, kind="pp", tokens=1024)) == (7.5 * 512, 1.5e10)
    assert plots.intensity(row("a", 2, 10, macs_per_token=None)) is None


def test_names_without_what_they_share():
    assert plots.shortest(["q-1b-w2", "q-1b-w4"]) == {"q-1b-w2": "w2", "q-1b-w4": "w4"}
    assert plots.shortest(["one"]) == {"one": "one"}
    assert plots.shortest(["a", "a-b"]) == {"a": "a", "a-b": "a-b"}
