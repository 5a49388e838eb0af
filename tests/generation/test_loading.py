from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitqwen
from bitqwen.errors import BitqwenError, UsageError
from bitqwen.generation.loading import gguf_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITQWEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Any], cache: Path) -> Path:
    return Path(tiny_checkpoint().folder)


def test_a_checkpoint_is_converted_once_and_found_again(folder: Path, cache: Path) -> None:
    path = gguf_path(folder)
    assert path.parent == cache / "converted"
    written = path.stat().st_mtime_ns
    assert gguf_path(folder) == path
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_scheme_or_a_changed_checkpoint_is_another_file(folder: Path, cache: Path) -> None:
    path = gguf_path(folder)
    assert gguf_path(folder, scheme="q8_0") != path
    config = folder / "generation_config.json"
    config.write_text('{"eos_token_id": 1}')
    assert gguf_path(folder) != path


def test_a_gguf_file_is_taken_as_it_is(folder: Path, cache: Path) -> None:
    path = gguf_path(folder)
    assert gguf_path(path) == path
    assert gguf_path(str(path)) == path


def test_load_generate_and_stream(folder: Path, cache: Path) -> None:
    with bitqwen.load(folder, threads=1, context=64) as model:
        assert model.context == 64
        assert model.load_seconds > 0
        text = bitqwen.generate(model, "the fox", temperature=0, max_tokens=5)
        assert len(text.tokens) == 5
        assert "".join(bitqwen.stream(model, "the fox", temperature=0, max_tokens=5)) == text.text
        assert bitqwen.generate(folder, "the fox", temperature=0, max_tokens=5).tokens == text.tokens


def test_the_engine_gives_the_same_answer_with_and_without_a_kept_prefix(folder: Path, cache: Path) -> None:
    with (
        bitqwen.load(folder, threads=1, context=64) as model,
        bitqwen.load(folder, threads=1, context=64) as other,
    ):
        first = model.generate("the fox jumps", temperature=0, max_tokens=6)
        ids = [*model.encode_prompt("the fox jumps"), *first.tokens, 3]
        reused = model.generate(ids, temperature=0, max_tokens=6)
        assert reused.timings.cached_tokens == len(ids) - 2
        assert reused.tokens == other.generate(ids, temperature=0, max_tokens=6).tokens


def test_an_unknown_option_is_named(folder: Path) -> None:
    with pytest.raises(UsageError, match="no option 'n_ctx'"):
        bitqwen.load(folder, n_ctx=5)  # type: ignore[call-arg]


def test_what_is_no_model_is_an_error_of_ours(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(BitqwenError):
        bitqwen.load(tmp_path / "text.gguf")
    with pytest.raises(BitqwenError):
        bitqwen.load(tmp_path / "absent.gguf")


def test_greedy_text_is_the_same_with_a_screened_head(
    tiny_checkpoint: Callable[..., Any], cache: Path
) -> None:
    folder = tiny_checkpoint(tied=False, heads=4, kv_heads=2, hidden=256, head_dim=64).folder
    texts = []
    for screened in (False, True):
        with bitqwen.load(folder, exact_head=not screened, threads=2, context=256) as model:
            with model.model.profile() as profile:
                results = [
                    model.generate(prompt, temperature=0, max_tokens=60, ignore_eos=ignore)
                    for prompt in ("a b c", [7, 8, 9, 10])
                    for ignore in (False, True)
                ]
            texts.append([result.tokens for result in results])
            assert (profile.operation("screen").calls > 0) == screened
    assert texts[0] == texts[1]
