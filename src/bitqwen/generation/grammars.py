"""What an answer may look like: JSON, a schema, a pattern, a grammar, one of several texts, calls of tools.

Each function makes a :class:`Grammar`, which ``LanguageModel.generate(constraint=...)`` and the server take.
The answer is then bound to it token by token: what the grammar does not allow has probability 0. An answer
that ends of itself is whole; one that ``max_tokens`` or a stop string cuts off is only the beginning of one.

White space between the parts of JSON is bounded (one space, or a line break and an indent), because a model
that may write white space without end sometimes does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitqwen.errors import BitqwenError, UsageError
from bitqwen.generation.tool_calls import CLOSING, OPENING

MAX_BYTES = 256 * 1024
"""The largest schema or grammar that is taken."""
MAX_DEPTH = 64
"""The deepest nesting of a schema that is taken."""
MAX_CHOICES = 10_000

_WHITESPACE = {"x-guidance": {"whitespace_pattern": r" |\n[ \t]{0,40}"}}
_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Grammar:
    """A description of the allowed answers; whether it can be enforced shows when a constraint is made of it.

    Attributes:
        kind: what it was made from, for messages: "json_schema", "regex" ...
        source: in llguidance's own notation.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        size = len(self.source.encode("utf-8", "replace"))
        if size > MAX_BYTES:
            raise UsageError(f"The {self.kind} has {size} bytes; allowed: up to {MAX_BYTES}.")


def json_object() -> Grammar:
    """Any JSON object."""
    return Grammar("json_object", _whole("json_schema", {**_ANY_OBJECT, **_WHITESPACE}))


def json_schema(schema: Mapping[str, Any]) -> Grammar:
    """JSON that a schema (draft 2020-12) describes, with properties in the schema's order.

    Every keyword is enforced: a schema with one that cannot be is refused when the constraint is made.

    Args:
        schema: the schema as an object.

    Raises:
        UsageError: it is no object, holds what JSON cannot express, or is too large or too deep.
    """
    return Grammar("json_schema", _whole("json_schema", _checked(schema, "json_schema")))


def regex(pattern: str) -> Grammar:
    r"""Text that a pattern matches as a whole.

    Args:
        pattern: in the syntax of Rust's ``regex`` crate, without look-around and back-references; ``\d`` and
            ``\w`` are ASCII's.

    Raises:
        UsageError: the pattern is no text, or empty.
    """
    to_lark = _llguidance().regex_to_lark
    return Grammar("regex", _whole("lark_grammar", f"start: /{to_lark(_text(pattern, 'regex'), 'dw')}/"))


def grammar(text: str) -> Grammar:
    """Text of a context-free grammar.

    Args:
        text: in llguidance's dialect of Lark, where the rule ``start`` is the answer, or in llama.cpp's GBNF,
            where it is ``root``.

    Raises:
        UsageError: the grammar is no text, empty, or GBNF that cannot be read.
    """
    given = _text(text, "grammar")
    if len(given) > MAX_BYTES:
        raise UsageError(f"The grammar has {len(given)} characters; allowed: up to {MAX_BYTES}.")
    if not _GBNF_RULE.search(given):
        return Grammar("grammar", _whole("lark_grammar", given))
    try:
        source = _llguidance().grammar_from("gbnf", given)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The grammar was refused: {error}") from error
    return Grammar("grammar", source)


def choice(options: Sequence[str]) -> Grammar:
    """One of several texts.

    Raises:
        UsageError: no options, too many, or one that is no text or empty.
    """
    if isinstance(options, str) or not isinstance(options, Sequence) or not 0 < len(options) <= MAX_CHOICES:
        raise UsageError(f"choice is not a list of texts; allowed: 1 to {MAX_CHOICES} of them.")
    texts = [_literal(_text(option, "An option of choice")) for option in options]
    return Grammar("choice", _whole("lark_grammar", "start: " + " | ".join(texts)))


def tool_calls(
    tools: Sequence[Mapping[str, Any]],
    *,
    mode: Literal["required", "auto"] = "required",
    name: str | None = None,
    parallel: bool = True,
    text_schema: Mapping[str, Any] | None = None,
) -> Grammar:
    """Calls of tools in Qwen2.5's form, with the tools' own names.

    Args:
        tools: in OpenAI's form: ``{"type": "function", "function": {"name", "parameters", "strict"}}``.
        mode: "required": the answer is calls and nothing else, and their arguments fit the tools' schemas.
            "auto": it is text, calls, or both, and arguments fit the schemas of tools with ``strict: true``.
        name: allow this tool only.
        parallel: allow several calls.
        text_schema: with "auto", an answer without calls is JSON of this schema instead of text.

    Raises:
        UsageError: a tool that is none, no tool of that name, or a schema that is none.
    """
    functions = [_function(tool, i) for i, tool in enumerate(tools)]
    allowed = [function for function in functions if name in {None, function["name"]}]
    if not allowed:
        names = ", ".join(repr(function["name"]) for function in functions)
        wanted = "a call is required" if name is None else f"the tool {name!r} is required"
        raise UsageError(f"{wanted}, and the tools are: {names or 'none'}.")
    rules = [_call_rule(i, function, bound=mode == "required") for i, function in enumerate(allowed)]
    rules.append("call: " + " | ".join(f"call_{i}" for i in range(len(allowed))))
    opening = _literal(OPENING)
    calls = f"{opening} call" + (f" ({_literal(chr(10))} {opening} call)*" if parallel else "")
    if mode == "required":
        rules.append(f"start: {calls}")
    elif text_schema is not None:
        rules.append(f"start: {calls} | %json {json.dumps(_checked(text_schema, 'json_schema'))}")
    else:
        anything = r"(.|\n)*"
        rules += [
            f"start: (before call){'*' if parallel else '?'} LAST",
            f"before[lazy]: /{anything}{OPENING}/",
            f"LAST: /{anything}/ & ~/{anything}{OPENING}{anything}/",
        ]
    return Grammar("tool's schema", _whole("lark_grammar", "\n".join(rules)))


def _call_rule(number: int, function: Mapping[str, Any], *, bound: bool) -> str:
    """The rule of one tool's call, from after the opening tag."""
    parameters: Mapping[str, Any] = _ANY_OBJECT
    if bound or function.get("strict"):
        given = function.get("parameters")
        parameters = _NO_PARAMETERS if given is None else given
    schema = _checked(parameters, f"The tool {function['name']!r}'s schema")
    name = json.dumps(function["name"], ensure_ascii=False)
    head = _literal(f'\n{{"name": {name}, "arguments": ')
    return f"call_{number}: {head} %json {json.dumps(schema)} {_literal('}' + chr(10) + CLOSING)}"


def _function(tool: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise UsageError(
            f"Tool {place + 1} is no function with a name.",
            hint='Give {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
        )
    return function


def _checked(schema: Any, what: str) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise UsageError(f"{what} is a {type(schema).__name__}; allowed: a schema, which is an object.")
    _check_depth(schema, what)
    try:
        text = json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} holds what JSON cannot express: {error}.") from error
    return {**json.loads(text), **_WHITESPACE}


def _check_depth(value: Any, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = [item.values() if isinstance(item, Mapping) else item for item in level]
        level = [item for items in inner for item in items if isinstance(item, Mapping | list | tuple)]
        if not level:
            return
    raise UsageError(f"{what} is nested too deeply; allowed: {MAX_DEPTH} levels.")


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{what} is {value!r}; allowed: a text that is not empty.")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"{what} is not valid Unicode: it holds lone surrogates.")
    return value


def _literal(text: str) -> str:
    """``text`` as a literal of Lark."""
    return json.dumps(text)


def _whole(kind: str, content: Any) -> str:
    return json.dumps({"grammars": [{kind: content}]})


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise BitqwenError(
            "Constrained answers need the package llguidance, which is not installed.",
            hint="Install it with: pip install 'bitqwen[serve]'",
        ) from error
    return llguidance
