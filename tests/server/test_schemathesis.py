"""schemathesis over the published document: no request is answered 5xx, every answer is as described."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from live import LiveServer

from bitqwen.generation.language_model import LanguageModel

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (extra: clients)")

EXAMPLES = 12  # of each operation

HELLO = [{"role": "user", "content": "Hello"}]
MINIMAL: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2},
    "/v1/embeddings": {"input": "Hello"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": HELLO},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 2},
    "/tokenize": {"content": "Hello"},
    "/detokenize": {"tokens": [5, 6]},
    "/apply-template": {"messages": HELLO},
}

PATHS = [
    "/",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/models",
    "/v1/models/{model}",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/health",
    "/ready",
    "/metrics",
]


@pytest.fixture(scope="module")
def document(load_tiny: Callable[..., LanguageModel]) -> Iterator[Any]:
    model = load_tiny(context=256, cache_positions=1024)
    with LiveServer(model, max_tokens=3, max_choices=2) as live:
        yield schemathesis.openapi.from_url(f"{live.url}/openapi.json")


def operations(document: Any) -> dict[str, Any]:
    return {operation.ok().path: operation.ok() for operation in document.get_all_operations()}


def test_every_operation_is_asked(document: Any) -> None:
    assert set(operations(document)) == set(PATHS)


@pytest.mark.parametrize("path", PATHS)
def test_an_operation(document: Any, path: str) -> None:
    checks = schemathesis.checks
    wanted = [
        checks.not_a_server_error,
        checks.CHECKS.get_one("status_code_conformance"),
        checks.CHECKS.get_one("content_type_conformance"),
        checks.CHECKS.get_one("response_schema_conformance"),
    ]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operations(document)[path].as_strategy(), odd=st.integers(0, 99))
    def ask(case: Any, odd: int) -> None:
        # A third as it came to mind, a third for the model that there is, a third with one odd field only.
        if odd % 3 and "model" in (case.path_parameters or {}):
            case.path_parameters["model"] = "tiny"
        if odd % 3 and isinstance(case.body, dict):
            fields = {**case.body, "model": "tiny"}
            name = sorted(fields)[odd % len(fields)]
            minimal = {"model": "tiny", **MINIMAL[path]}
            case.body = fields if odd % 3 == 1 else {name: fields[name], **minimal}
        statuses.add(case.call_and_validate(checks=wanted, timeout=60).status_code)

    statuses: set[int] = set()
    ask()
    assert 200 in statuses
    assert max(statuses) < 500
