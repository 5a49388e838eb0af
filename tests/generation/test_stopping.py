from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitqwen.errors import UsageError
from bitqwen.generation.stopping import StopStrings

small_text = st.text(alphabet="abc", max_size=30)
small_stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Letter by letter: the first letter that completes a stop string ends the text."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            longest = max(done, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(st.lists(small_text, max_size=8), small_stops)
@example(["a", "b", "c"], ["abc", "b"])
@example(["ab", "abc"], ["babc", "abab"])
def test_the_cut_does_not_depend_on_the_pieces(pieces: list[str], stops: list[str]) -> None:
    stopping = StopStrings(stops)
    shown = "".join(map(stopping.feed, pieces))
    if stopping.matched is None:
        shown += stopping.finish()
    assert (shown, stopping.matched) == reference("".join(pieces), stops)


@given(small_text, small_stops)
def test_nothing_is_held_back_longer_than_it_must_be(text: str, stops: list[str]) -> None:
    stopping = StopStrings(stops)
    shown = ""
    for end, letter in enumerate(text, start=1):
        shown += stopping.feed(letter)
        if stopping.matched is not None:
            return
        held = text[len(shown) : end]
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        longest = max(
            (length for length in range(1, end + 1) if text[end - length : end] in beginnings), default=0
        )
        assert len(held) == longest


def test_nothing_comes_after_a_match() -> None:
    stopping = StopStrings("END")
    assert stopping.feed("one END two") == "one "
    assert stopping.matched == "END"
    assert stopping.feed("three") == ""
    assert stopping.finish() == ""


def test_without_stop_strings_text_passes_through() -> None:
    for stops in (None, [], ()):
        stopping = StopStrings(stops)
        assert stopping.feed("text") == "text"
        assert stopping.finish() == ""


@pytest.mark.parametrize("stops", ["", [""], [3], ["x" * 1025], ["a"] * 65])
def test_what_is_no_stop_string_is_refused(stops: object) -> None:
    with pytest.raises(UsageError, match="allowed"):
        StopStrings(stops)  # type: ignore[arg-type]
