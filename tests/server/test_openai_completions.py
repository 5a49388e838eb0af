"""Text completions, embeddings, tokens and models: what each field does."""

from __future__ import annotations

import base64
import json
import math
from unittest.mock import ANY

import numpy as np
import pytest


@pytest.fixture
def client(start_app):
    return start_app()


@pytest.fixture
def complete(client):
    def call(**fields):
        body = {"model": "tiny", "prompt": "the quick brown", "temperature": 0, "max_tokens": 10} | fields
        return client.post("/v1/completions", {k: v for k, v in body.items() if v is not None})

    return call


def texts(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def events(response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


class TestCompletions:
    def test_the_text_is_what_the_library_gives(self, complete, language_model):
        expected = language_model.generate("the quick brown", max_tokens=10, temperature=0)
        assert texts(complete()) == [expected.text]
        assert texts(complete(prompt=language_model.tokenizer.encode("the quick brown"))) == [expected.text]

    def test_several_prompts_and_choices_keep_their_places(self, complete):
        hot = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "seed": 3}
        together = texts(complete(prompt=["the dog", "In 1815"], n=2, **hot))
        for place, (prompt, seed) in enumerate(
            [("the dog", 3), ("the dog", 4), ("In 1815", 3), ("In 1815", 4)]
        ):
            assert texts(complete(prompt=prompt, **hot | {"seed": seed})) == [together[place]]

    def test_a_stream_is_the_same_in_pieces(self, complete):
        asked = {"prompt": ["the dog", "In 1815"], "n": 2, "echo": True, "logprobs": 1}
        whole = complete(**asked)
        joined, logprobs = [""] * 4, [[] for _ in range(4)]
        for chunk in events(complete(**asked, stream=True, stream_options={"include_usage": True})):
            for choice in chunk["choices"]:
                joined[choice["index"]] += choice["text"]
                logprobs[choice["index"]] += choice["logprobs"]["token_logprobs"]
        assert joined == texts(whole)
        assert logprobs == [choice["logprobs"]["token_logprobs"] for choice in whole.json()["choices"]]
        assert chunk["usage"] == whole.json()["usage"] | {"prompt_tokens_details": {"cached_tokens": ANY}}

    def test_echo_with_logprobs_scores_the_prompt(self, complete, language_model):
        ids = language_model.tokenizer.encode("the quick brown")
        response = complete(echo=True, logprobs=2, max_tokens=0)
        assert texts(response) == ["the quick brown"]
        logprobs = response.json()["choices"][0]["logprobs"]
        logits = language_model.logits(ids)[:, : language_model.tokenizer.vocab_size].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert logprobs["token_logprobs"][0] is None
        for place in range(1, len(ids)):
            assert math.isclose(
                logprobs["token_logprobs"][place], expected[place - 1, ids[place]], abs_tol=1e-4
            )
            assert len(logprobs["top_logprobs"][place]) in {2, 3}
        starts = logprobs["text_offset"]
        assert ["the quick brown"[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)] == logprobs[
            "tokens"
        ]

    def test_echo_goes_before_the_text(self, complete):
        assert texts(complete(echo=True)) == ["the quick brown" + texts(complete())[0]]

    def test_suffix_asks_for_the_middle(self, start_app):
        client = start_app()
        tokenizer = client.live.served.language_model.tokenizer
        body = {"model": "tiny", "prompt": "def f(", "suffix": "): pass", "max_tokens": 4, "temperature": 0}
        refused = client.post("/v1/completions", body)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "suffix")
        assert "<|fim_" in refused.json()["error"]["message"]
        names = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
        for place, name in enumerate(names):
            tokenizer.control.setdefault(name, place)
        prefix, suffix, middle = (tokenizer.control[name] for name in names)
        ids = [prefix, *tokenizer.encode("def f("), suffix, *tokenizer.encode("): pass"), middle]
        expected = client.post("/v1/completions", {**body, "prompt": ids, "suffix": None})
        assert texts(client.post("/v1/completions", body))[0] == texts(expected)[0]

    @pytest.mark.real
    def test_a_coder_model_fills_the_gap(self, real_model):
        import httpx
        from live import LiveServer

        from bitqwen.generation.language_model import LanguageModel

        body = {"model": "tiny", "prompt": "def add(a, b):\n    return ", "suffix": "\n\nprint(add(1, 2))\n"}
        with LiveServer(LanguageModel.load(real_model, context=512)) as live:
            asked = body | {"temperature": 0, "max_tokens": 16}
            answer = httpx.post(f"{live.url}/v1/completions", json=asked, timeout=120)
        (choice,) = answer.json()["choices"]
        assert (choice["text"].strip(), choice["finish_reason"]) == ("a + b", "stop")

    def test_best_of_is_refused_by_name(self, complete):
        error = complete(best_of=2).json()["error"]
        assert (error["param"], error["code"]) == ("best_of", "unsupported_parameter")

    def test_nothing_to_do_is_refused(self, complete):
        assert complete(max_tokens=0).json()["error"]["param"] == "max_tokens"
        assert complete(prompt="").status_code == 400
        assert complete(prompt=[100000]).status_code == 400


class TestEmbeddings:
    def embed(self, client, **fields):
        response = client.post("/v1/embeddings", {"model": "tiny"} | fields)
        assert response.status_code == 200, response.text
        return response.json()

    def test_vectors_are_pooled_states_of_length_one(self, client, language_model):
        ids = language_model.tokenizer.encode("the quick brown fox")
        with language_model.model.session() as session:
            states = session.hidden(ids).astype(np.float64)
        for pooling, pooled in (("mean", states.mean(axis=0)), ("last", states[-1])):
            (made,) = self.embed(client, input="the quick brown fox", pooling=pooling)["data"]
            np.testing.assert_allclose(made["embedding"], pooled / np.linalg.norm(pooled), atol=1e-6)
        assert self.embed(client, input="the quick brown fox")["usage"]["prompt_tokens"] == len(ids)

    def test_chunks_and_neighbours_change_nothing(self, start_app):
        long = "the quick brown fox " * 20
        several = self.embed(start_app(step_tokens=13), input=[long, "In 1815"])["data"]
        alone = self.embed(start_app(), input=long)["data"][0]
        np.testing.assert_allclose(several[0]["embedding"], alone["embedding"], atol=1e-6)
        assert several[0]["embedding"] != several[1]["embedding"]

    def test_base64_is_the_same_vector(self, client):
        (text,) = self.embed(client, input="fox", encoding_format="base64")["data"]
        (numbers,) = self.embed(client, input="fox")["data"]
        decoded = np.frombuffer(base64.b64decode(text["embedding"]), "<f4")
        np.testing.assert_array_equal(decoded, np.array(numbers["embedding"], np.float32))

    def test_dimensions_are_refused_by_name(self, client):
        response = client.post("/v1/embeddings", {"model": "tiny", "input": "a", "dimensions": 8})
        assert response.json()["error"]["param"] == "dimensions"


class TestTokens:
    def test_tokens_and_text(self, client, language_model):
        ids = language_model.tokenizer.encode("naïve fox")
        assert client.post("/tokenize", {"content": "naïve fox"}).json() == {"tokens": ids}
        assert client.post("/detokenize", {"tokens": ids}).json() == {"content": "naïve fox"}
        pieces = client.post("/tokenize", {"content": "🙂", "with_pieces": True}).json()["tokens"]
        data = b"".join(
            piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"])
            for piece in pieces
        )
        assert data.decode() == "🙂"

    def test_control_tokens_only_if_asked(self, client, language_model):
        control = language_model.tokenizer.control["<|im_end|>"]
        plain = client.post("/tokenize", {"content": "<|im_end|>"}).json()["tokens"]
        assert control not in plain
        asked = client.post("/tokenize", {"content": "<|im_end|>", "parse_special": True}).json()
        assert asked == {"tokens": [control]}

    def test_a_beginning_only_if_asked_and_if_the_model_has_one(self, client, monkeypatch):
        fox = client.post("/tokenize", {"content": "fox"}).json()["tokens"]
        asked = {"content": "fox", "add_special": True}
        assert client.post("/tokenize", asked).json()["tokens"] == fox
        tokenizer = client.live.served.language_model.tokenizer
        monkeypatch.setattr(tokenizer, "add_bos", True)
        monkeypatch.setattr(tokenizer, "bos_id", 7)
        assert client.post("/tokenize", asked).json()["tokens"] == [7, *fox]
        assert client.post("/tokenize", {"content": "fox"}).json()["tokens"] == fox

    def test_the_template(self, client, language_model):
        messages = [{"role": "user", "content": "Hi"}]
        made = client.post("/apply-template", {"messages": messages}).json()
        assert made == {"prompt": language_model.template.render(messages)}
        tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
        shown = client.post("/apply-template", {"messages": messages, "tools": tools}).json()
        assert shown == {"prompt": language_model.template.render(messages, tools)}
        open_end = client.post("/apply-template", {"messages": messages, "add_generation_prompt": False})
        assert open_end.json()["prompt"] == language_model.template.render(
            messages, add_generation_prompt=False
        )


def test_models(start_app):
    client = start_app(alias=["gpt-4o"])
    (card,) = client.get("/v1/models").json()["data"]
    assert (card["id"], card["context_length"], card["aliases"]) == ("tiny", 512, ["gpt-4o"])
    assert client.get("/v1/models/gpt-4o").json() == card
    assert client.get("/v1/models/gpt-5").status_code == 404


def test_metrics_count_what_happened(start_app):
    client = start_app()
    body = {"model": "tiny", "prompt": "the quick brown fox jumps over the lazy dog", "max_tokens": 5}
    prompt = client.post("/v1/completions", body | {"temperature": 0}).json()["usage"]["prompt_tokens"]
    client.get("/nowhere")
    lines = client.get("/metrics").text.splitlines()
    assert 'bitqwen_generated_tokens_total{model="tiny"} 5.0' in lines
    assert f'bitqwen_prompt_tokens_total{{model="tiny"}} {float(prompt)}' in lines
    assert 'bitqwen_requests_total{path="/v1/completions",status="200"} 1.0' in lines
    assert 'bitqwen_requests_total{path="other",status="404"} 1.0' in lines
    assert 'bitqwen_running_sequences{model="tiny"} 0.0' in lines
    assert 'bitqwen_cache_positions{model="tiny"} 4096.0' in lines
