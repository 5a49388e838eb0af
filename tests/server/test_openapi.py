"""The published document: complete, sound, and what the server really answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def document(start_app):
    return start_app().get("/openapi.json").json()


def test_every_endpoint_and_every_reference_is_in_it(document):
    assert {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/messages",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
        "/apply-template",
        "/health",
        "/ready",
        "/metrics",
    } <= set(document["paths"])
    schemas = document["components"]["schemas"]

    def check(value):
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                assert reference.removeprefix("#/components/schemas/") in schemas
            for item in value.values():
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)

    check(document)
    body = schemas["ChatRequest"]
    assert body["additionalProperties"] is False
    assert {"messages", "response_format", "seed", "guided_regex"} <= set(body["properties"])


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), path=st.sampled_from([*PATHS, "/tokenize", "/detokenize", "/apply-template"]))
def test_no_body_of_known_fields_with_any_values_makes_the_server_fail(canaries, data, path):
    import httpx

    url, _ = canaries
    document = _document(url)
    model = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = document["components"]["schemas"][model.rpartition("/")[2]]["properties"]
    sound = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "x"}],
        "prompt": "x",
        "input": "x",
        "content": "x",
        "tokens": [1],
        "max_tokens": 2,
        "max_output_tokens": 2,
    }
    body = {name: value for name, value in sound.items() if name in fields}
    body |= data.draw(st.dictionaries(st.sampled_from(sorted(fields)), JSON, max_size=3))
    answer = httpx.post(url + path, content=json.dumps(body).encode(), timeout=60)
    assert answer.status_code in {200, 400, 404}, (body, answer.text)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


_DOCUMENTS: dict[str, dict] = {}


def _document(url: str) -> dict:
    import httpx

    if url not in _DOCUMENTS:
        _DOCUMENTS[url] = httpx.get(f"{url}/openapi.json").json()
    return _DOCUMENTS[url]
