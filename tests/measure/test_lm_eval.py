from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitqwen.engine import Model
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.tokenizer import Tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'bitqwen[lm-eval]'")

from bitqwen.errors import UsageError  # noqa: E402
from bitqwen.measure.lm_eval import BitqwenLM  # noqa: E402

QUESTIONS = [
    {"question": "The quick brown", "choices": [" fox", " lazy dog", " token"], "answer": 0},
    {"question": "def add(left, right):\n    return", "choices": [" left", " a river"], "answer": 1},
]
TEXT = "A transformer reads tokens, and writes the next one. " * 12


@pytest.fixture(scope="module")
def adapter(tiny_gguf: Path) -> BitqwenLM:
    return BitqwenLM.create_from_arg_string(
        f"pretrained={tiny_gguf},threads=2,context=128,sequences=2", {"device": "cpu", "batch_size": 1}
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def task(folder: Path, name: str, rows: list[dict[str, Any]], **settings: Any) -> dict[str, Any]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        **settings,
    }


def log_likelihood(
    model: Model, tokenizer: Tokenizer, context: list[int], continuation: list[int]
) -> tuple[float, bool]:
    ids = context + continuation
    logits = model.logits(ids[:-1]).astype(np.float64)[len(context) - 1 :, : tokenizer.vocab_size]
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    total = sum(float(row[token]) for row, token in zip(logprobs, continuation, strict=True))
    return total, logits.argmax(axis=1).tolist() == continuation


def instances(requests: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, request, i) for i, request in enumerate(requests)]


def test_log_likelihoods(adapter: BitqwenLM, engine: Model, tokenizer: Tokenizer) -> None:
    best = int(engine.logits(tokenizer.encode("The quick"))[-1, : tokenizer.vocab_size].argmax())
    pairs = [
        ("The quick brown", " fox"),
        ("The quick brown", " lazy dog and some more"),
        ("Something else", "!"),
        ("The quick", tokenizer.decode([best])),
    ]
    found = adapter.loglikelihood(instances(pairs), disable_tqdm=True)
    for (context, continuation), answer in zip(pairs, found, strict=True):
        ids = tokenizer.encode(context + continuation)
        start = len(tokenizer.encode(context))
        expected = log_likelihood(engine, tokenizer, ids[:start], ids[start:])
        assert answer == (pytest.approx(expected[0], rel=1e-5), expected[1])
    # Without a context, the end of a text stands before the first token.
    ids = tokenizer.encode("fox")
    expected = log_likelihood(engine, tokenizer, [adapter.eot_token_id], ids)
    assert adapter.loglikelihood(instances([("", "fox")]), disable_tqdm=True)[0][0] == pytest.approx(
        expected[0], rel=1e-5
    )


def test_a_long_text_in_windows_that_do_not_overlap(
    adapter: BitqwenLM, engine: Model, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > 2 * 128
    expected = log_likelihood(engine, tokenizer, [adapter.eot_token_id], ids[:128])[0]
    for begin in range(128, len(ids), 128):
        part = ids[begin : begin + 128]
        # The last window, which is shorter, reaches back as far as the context allows.
        before = ids[begin + len(part) - 129 : begin]
        expected += log_likelihood(engine, tokenizer, before, part)[0]
    assert adapter.loglikelihood_rolling(instances([(TEXT,)])) == [pytest.approx(expected, rel=1e-4)]


def test_answers(adapter: BitqwenLM, engine: Model, tokenizer: Tokenizer) -> None:
    prompts = ["The quick brown", "def add(left", "Über"]
    model = LanguageModel(engine, tokenizer)
    whole = [model.generate(tokenizer.encode(each), max_tokens=16, temperature=0).text for each in prompts]
    model.close()
    stop = whole[0][5:8]
    settings = {"until": [stop], "max_gen_toks": 16, "do_sample": False}
    requests = instances([(each, settings) for each in prompts])
    assert adapter.generate_until(requests) == [each.split(stop)[0] for each in whole]
    with pytest.raises(UsageError, match="wants its answers sampled"):
        adapter.generate_until(instances([("x", {"do_sample": True, "temperature": 0.7})]))
    with pytest.raises(UsageError, match="generates 500 tokens; the context holds 128"):
        adapter.generate_until(instances([("x", {"max_gen_toks": 500})]))


def test_conversations_are_rendered_by_the_model_s_template(adapter: BitqwenLM) -> None:
    text = adapter.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    ids = adapter.tok_encode(text)
    assert len(ids) < len(adapter.tok_encode(text.replace("<|", "< |")))
    opened = adapter.apply_chat_template(
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well"}],
        add_generation_prompt=False,
    )
    assert opened.endswith("Well")
    assert adapter.chat_template(False) is None


def test_the_harness_runs_tasks(adapter: BitqwenLM, offline: Path) -> None:
    tasks = [
        task(
            offline,
            "bitqwen_choices",
            QUESTIONS,
            output_type="multiple_choice",
            doc_to_text="{{question}}",
            doc_to_choice="{{choices}}",
            doc_to_target="answer",
            target_delimiter="",
            metric_list=[{"metric": "acc"}],
        ),
        task(
            offline,
            "bitqwen_words",
            [{"text": TEXT}],
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": "word_perplexity"}],
        ),
        task(
            offline,
            "bitqwen_answers",
            [{"question": "1 + 1 =", "answer": "2"}],
            output_type="generate_until",
            doc_to_text="{{question}}",
            doc_to_target="{{answer}}",
            generation_kwargs={"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
            metric_list=[{"metric": "exact_match"}],
        ),
    ]
    results = lm_eval.simple_evaluate(model=adapter, tasks=tasks, bootstrap_iters=0)["results"]
    chosen = [
        max(
            range(len(each["choices"])),
            key=lambda i, each=each: adapter.loglikelihood(
                instances([(each["question"], each["choices"][i])]), disable_tqdm=True
            )[0][0],
        )
        for each in QUESTIONS
    ]
    right = [each["answer"] == choice for each, choice in zip(QUESTIONS, chosen, strict=True)]
    assert results["bitqwen_choices"]["acc,none"] == pytest.approx(np.mean(right))
    total = adapter.loglikelihood_rolling(instances([(TEXT,)]))[0]
    words = len(TEXT.split(" "))
    assert results["bitqwen_words"]["word_perplexity,none"] == pytest.approx(
        math.exp(-total / words), rel=0.05
    )
    assert results["bitqwen_answers"]["exact_match,none"] in {0.0, 1.0}


def test_it_is_registered() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("bitqwen") is BitqwenLM
