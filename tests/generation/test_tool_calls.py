from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitqwen.generation.json_scanner import MAX_DEPTH, JsonScanner
from bitqwen.generation.tool_calls import (
    ArgumentsPiece,
    CallEnded,
    CallStarted,
    TextPiece,
    ToolCall,
    ToolCallEvent,
    ToolCallParser,
    collect,
    merge,
    parse_tool_calls,
)

WEATHER = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'


def events_of(pieces: list[str]) -> list[ToolCallEvent]:
    parser = ToolCallParser()
    return merge([event for piece in pieces for event in parser.feed(piece)] + parser.finish())


def parsed(answer: str) -> tuple[str, list[tuple[str, str]]]:
    answer_parts = parse_tool_calls(answer)
    return answer_parts.text, [(call.name, call.arguments) for call in answer_parts.calls]


def test_a_call() -> None:
    assert events_of([f"<tool_call>\n{WEATHER}\n</tool_call>"]) == [
        CallStarted(0, "weather"),
        ArgumentsPiece(0, '{"city": "Paris", "days": 2}'),
        CallEnded(0),
    ]


def test_text_and_several_calls() -> None:
    answer = (
        f"I look.\n\n<tool_call>\n{WEATHER}\n</tool_call>\n"
        '<tool_call>{"arguments": {"x": [1, {"}": "</tool_call>"}]}, "name": "f"}</tool_call>\n Done. '
    )
    assert events_of([answer]) == [
        TextPiece("I look."),
        CallStarted(0, "weather"),
        ArgumentsPiece(0, '{"city": "Paris", "days": 2}'),
        CallEnded(0),
        CallStarted(1, "f"),
        ArgumentsPiece(1, '{"x": [1, {"}": "</tool_call>"}]}'),
        CallEnded(1),
        TextPiece("Done. "),
    ]


def test_arguments_arrive_while_they_are_written() -> None:
    parser = ToolCallParser()
    assert parser.feed('<tool_call>\n{"name": "f", "argu') == []
    assert parser.feed('ments": {"te') == [CallStarted(0, "f"), ArgumentsPiece(0, '{"te')]
    assert parser.feed("xt") == [ArgumentsPiece(0, "xt")]
    assert parser.feed('": 1}') == [ArgumentsPiece(0, '": 1}')]
    assert parser.feed("}") == [CallEnded(0)]
    assert parser.feed("\n</tool_call>") == []
    assert parser.finish() == []
    with pytest.raises(ValueError, match="finished"):
        parser.feed("more")


def test_text_is_not_held_back_longer_than_it_may_be_a_tag() -> None:
    parser = ToolCallParser()
    assert parser.feed("a <tool") == [TextPiece("a")]
    assert parser.feed("box> b") == [TextPiece(" <toolbox> b")]
    assert parser.feed(" \n") == []
    assert parser.finish() == [TextPiece(" \n")]


@pytest.mark.parametrize(
    ("inside", "arguments"),
    [
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": null}', "{}"),
        ('{"name": "f", "arguments": {}}', "{}"),
        ('{"arguments": null, "name": "f"}', "{}"),
        (
            '{"id": 12, "name": "f", "arguments": {"a": -1.5e3}, "x": [true, false, null, {}]}',
            '{"a": -1.5e3}',
        ),
        ('{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', '{"a": "é"}'),
        ('{"\\u006eame": "f", "arguments": { "a" : [ ] } }', '{ "a" : [ ] }'),
    ],
)
def test_forms_of_a_call(inside: str, arguments: str) -> None:
    assert parsed(f"<tool_call>\n{inside}\n</tool_call>") == ("", [("f", arguments)])


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "no JSON",
        "[1]",
        "{}",
        '{"name": 1, "arguments": {}}',
        '{"name": "", "arguments": {}}',
        '{"name": "\\ud800", "arguments": {}}',
        '{"name": "f", "arguments": [1]}',
        '{"name": "f", "arguments": "no JSON"}',
        '{"name": "f", "arguments": "[1]"}',
        '{"name": "f", "arguments": nul}',
        '{"name": "f", "name": "g", "arguments": {}}',
        '{"name": "f", "arguments": {"a": 01}}',
        '{"name": "f", "arguments": {"a": 1,}}',
        '{"name": "f", "arguments": {"a" 1}}',
        '{"name": "f", "arguments": {"a": \'b\'}}',
        '{"name": "f", "arguments": {"a": "line\nbreak"}}',
        '{"name": "f", "arguments": ' + '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH + "}",
        '{"arguments": {"a": 1}}',
        '{"name": "f", "arguments": {"a": 1',
    ],
)
def test_what_is_no_call_is_text_to_the_letter(inside: str) -> None:
    answer = f"See:\n <tool_call>\n{inside}\n</tool_call>\nafter"
    assert parsed(answer) == (answer, [])


@pytest.mark.parametrize("cut", range(1, 60))
def test_an_answer_that_is_cut_off_loses_nothing(cut: int) -> None:
    answer = f"Hm. <tool_call>\n{WEATHER}\n</tool_call>"[:-cut]
    text, calls = parsed(answer)
    if calls:
        assert cut <= len("}\n</tool_call>")
        assert (text, calls) == ("Hm.", [("weather", '{"city": "Paris", "days": 2}')])
    else:
        assert text == answer


def test_a_reader_of_the_stream_gets_the_rest_of_a_broken_call_as_arguments() -> None:
    source = '<tool_call>{"name": "f", "arguments": {"a": oops </tool_ca }}\n</tool_call>'
    assert events_of(["Text ", source, " more"]) == [
        TextPiece("Text"),
        CallStarted(0, "f"),
        ArgumentsPiece(0, '{"a": oops </tool_ca }}\n'),
        CallEnded(0, False, " " + source),
        TextPiece(" more"),
    ]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>', ""),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}\n</tool_call>', ""),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}', ""),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}}}</tool_call>', "}</tool_call>"),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}, oops}</tool_call>', ", oops}</tool_call>"),
        ('<tool_call>\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "<tool_call>"),
    ],
)
def test_whole_arguments_make_a_call_whatever_its_frame(answer: str, text: str) -> None:
    assert parsed(answer) == (text, [("f", '{"a": 1}')])


def test_a_call_may_follow_a_broken_one() -> None:
    broken = '<tool_call>\n{"name": "f", "arguments": {]}\n</tool_call>'
    answer = f"{broken}\n<tool_call>\n{WEATHER}\n</tool_call>"
    assert parsed(answer) == (broken, [("weather", '{"city": "Paris", "days": 2}')])


def test_a_second_closing_tag_is_text() -> None:
    assert parsed("a</tool_call>b") == ("a</tool_call>b", [])
    assert parsed(f"<tool_call>{WEATHER}</tool_call></tool_call>x")[0] == "</tool_call>x"


_FRAGMENTS = st.sampled_from(
    [
        "<tool_call>",
        "</tool_call>",
        "<tool_call>\n",
        "\n</tool_call>",
        '{"name": "f", "arguments": {"a": 1}}',
        '{"name": "f", "arguments": {',
        '{"arguments": {"b": "</tool_call>"}, "name": "g\\n"',
        '{"name": "',
        '"arguments": ',
        WEATHER,
        "<",
        "</",
        "}",
        '"',
        "\\",
        ",",
        " ",
        "\n",
        "null",
        "12",
        "é🙂",
    ]
)
_ANSWERS = st.lists(_FRAGMENTS | st.text(max_size=4), max_size=12).map("".join)


@settings(max_examples=400)
@given(answer=_ANSWERS, data=st.data())
def test_any_split_of_an_answer_gives_the_same_events(answer: str, data: st.DataObject) -> None:
    whole = events_of([answer])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=20)))
    bounds = [0, *cuts, len(answer)]
    assert events_of([answer[a:b] for a, b in itertools.pairwise(bounds)]) == whole
    assert events_of(list(answer)) == whole


@settings(max_examples=400)
@given(answer=_ANSWERS)
def test_events_are_well_formed_and_nothing_is_lost(answer: str) -> None:
    events = events_of([answer])
    open_call: int | None = None
    started = 0
    for event in events:
        if isinstance(event, TextPiece):
            assert open_call is None
        elif isinstance(event, CallStarted):
            assert open_call is None
            assert event.index == started
            open_call, started = event.index, started + 1
        else:
            assert event.index == open_call
            open_call = None if isinstance(event, CallEnded) else open_call
    assert open_call is None
    result = collect(events)
    for call in result.calls:
        assert isinstance(json.loads(call.arguments), dict)
    if not result.calls:
        assert result.text == answer


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(
    calls=st.lists(
        st.tuples(st.text(min_size=1), st.dictionaries(st.text(), _JSON, max_size=3), st.booleans()),
        max_size=3,
    ),
    text=st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=("Cs",))),
)
def test_calls_come_back(calls: list[tuple[str, dict[str, object], bool]], text: str) -> None:
    answer = text
    wanted = []
    for name, arguments, ascii_only in calls:
        written = json.dumps(arguments, ensure_ascii=ascii_only)
        answer += f'\n<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {written}}}\n</tool_call>'
        wanted.append(ToolCall(name, written))
    result = parse_tool_calls(answer)
    assert result.calls == wanted
    assert result.text == (text.rstrip() if calls else text)


@settings(max_examples=500)
@given(
    text=st.text(alphabet='{}[]:,"\\ \n0123456789.eE+-truefalsn', max_size=14).map(lambda text: "{" + text)
)
def test_the_scanner_agrees_with_pythons_parser(text: str) -> None:
    scanner = JsonScanner()
    whole = all(map(scanner.feed, text)) and scanner.done
    try:
        json.loads(text)
        expected = not text.endswith((" ", "\n"))
    except ValueError:
        expected = False
    assert whole == expected


@given(value=st.dictionaries(st.text(), _JSON, max_size=4))
def test_the_scanner_takes_all_json(value: dict[str, object]) -> None:
    scanner = JsonScanner()
    assert all(map(scanner.feed, json.dumps(value, indent=1)))
    assert scanner.done
    assert not scanner.feed(" ")


def test_reading_a_long_answer_takes_time_in_proportion() -> None:
    # Quadratic work would not end: each piece is looked at once.
    answer = '<tool_call>{"name": "f", "arguments": {"a": "' + "<tool_call>{" * 20_000
    assert parsed(answer) == (answer, [])
