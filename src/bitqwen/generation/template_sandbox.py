"""A jinja2 environment that behaves as Hugging Face's does and that a hostile template cannot hang.

A chat template comes with the model file and is as untrusted as it. The sandbox keeps it from Python's
objects; the bounds below keep it from running or growing without end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 1 << 20  # characters of a template; published ones stay below 20,000
MAX_OUTPUT = 1 << 24  # characters: more than any context holds
MAX_STEPS = 2_000_000  # loop rounds and calls of one rendering

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")


def _step() -> None:
    left = _steps_left.get()
    left[0] -= 1
    if left[0] < 0:
        raise SecurityError(f"it takes more than {MAX_STEPS} steps")


def _bounded(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MAX_OUTPUT:
        raise SecurityError(f"it builds a value of more than {MAX_OUTPUT} characters")
    return value


class _CountedItems:
    """An iterable that takes a step for each item; ``loop.length`` and ``loop.last`` work as before."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            _step()
            yield item

    def __len__(self) -> int:
        return len(self._items)


class _Bounds(NodeTransformer):
    """Rewrites a template so that loops count their rounds and ``~`` checks what it builds."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802 - jinja2's naming
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802 - jinja2's naming
        self.generic_visit(node)
        return nodes.Filter(node, "_bounded", [], [], None, None, lineno=node.lineno)


class _GenerationTag(jinja2.ext.Extension):
    """``{% generation %}``: marks what the assistant wrote, for training; here it renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return str(caller())


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            size = max(
                (len(side) for side in (left, right) if isinstance(side, str | list | tuple)), default=0
            )
            times = max((side for side in (left, right) if isinstance(side, int)), default=0)
            if size * times > MAX_OUTPUT:
                raise SecurityError(f"it builds a value of more than {MAX_OUTPUT} characters")
        if operator == "%" and isinstance(left, str) and re.search(r"\d{5}|\*", left):
            raise SecurityError("it formats with an enormous or variable width")
        if operator == "**" and not (abs(left) < 1 << 64 and abs(right) < 64):
            raise SecurityError("it raises to an enormous power")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        _step()
        return super().call(context, target, *args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> _Environment:
    # Without the optimizer: it evaluates constant expressions at compile time, before any bound holds.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters.update({"tojson": _tojson, "_counted": _CountedItems, "_bounded": _bounded})
    environment.globals.update({"raise_exception": _raise_exception, "strftime_now": _strftime_now})
    return environment


def compile_template(source: str) -> jinja2.Template:
    """Compiles a chat template.

    Raises:
        jinja2.TemplateError: a syntax error, or a source beyond :data:`MAX_SOURCE`.
    """
    if len(source) > MAX_SOURCE:
        raise SecurityError(f"it is {len(source)} characters long; allowed: {MAX_SOURCE}")
    environment = _environment()
    tree = _Bounds().visit(environment.parse(source))
    return environment.from_string(tree)


def render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Renders within the bounds.

    Raises:
        jinja2.exceptions.SecurityError: a bound was reached, or the template reached for Python's objects.
        jinja2.TemplateError: what the template itself raises.
    """
    token = _steps_left.set([MAX_STEPS])
    try:
        pieces: list[str] = []
        length = 0
        for piece in template.generate(variables):
            length += len(piece)
            if length > MAX_OUTPUT:
                raise SecurityError(f"it writes more than {MAX_OUTPUT} characters")
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _steps_left.reset(token)
