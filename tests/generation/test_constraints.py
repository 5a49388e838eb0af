from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_schemas import SchemaMaker

import bitqwen
from bitqwen.errors import UsageError
from bitqwen.generation import grammars
from bitqwen.generation.constraints import Constraint, ConstraintCompiler
from bitqwen.generation.grammars import Grammar
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.tokenizer import Tokenizer
from bitqwen.generation.tool_calls import parse_tool_calls

pytest.importorskip("llguidance", reason="llguidance is not installed (extra: serve)")
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (extra: test)")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Paris", "Rome"]},
                    "days": {"type": "integer", "maximum": 9},
                },
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "stop it", "strict": True}},
]


@pytest.fixture(scope="module")
def model(
    tiny_checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LanguageModel]:
    """Random weights: nothing but the constraint keeps this model from nonsense."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITQWEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        with bitqwen.load(
            Path(tiny_checkpoint(layers=1, tied=False).folder), threads=1, context=512
        ) as model:
            yield model


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer)


def ids_of(constraint: Constraint, vocab_size: int) -> list[int]:
    bits = np.unpackbits(constraint.mask().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits[:vocab_size]).tolist()


def closing_bias(tokenizer: Tokenizer) -> dict[int, float]:
    """Random weights rarely end a string; this makes them do so within a test's time."""
    return {tokenizer.encode(text)[0]: bias for text, bias in {'"': 7.0, "}": 4.0, "]": 4.0}.items()}


def test_every_answer_to_200_random_schemas_is_valid(model: LanguageModel) -> None:
    maker = SchemaMaker(seed=2024)
    bias = closing_bias(model.tokenizer)
    answers = set()
    for i in range(200):
        schema = maker.schema()
        answer = model.generate(
            "the fox",
            constraint=grammars.json_schema(schema),
            max_tokens=500,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            logit_bias=bias,
            seed=i,
        )
        assert answer.finish_reason == "stop", (schema, answer.text)
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(answer.text))
        answers.add(answer.text)
    assert len(answers) > 100  # the model still chooses


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (grammars.choice(["yes", "no", 'né 🙂 / \\ "q"\n']), r'yes|no|né 🙂 / \\ "q"\n'),
        (grammars.regex(r"\d{4}-(a|b)/[x-z]{1,3}"), r"[0-9]{4}-(a|b)/[x-z]{1,3}"),
        (grammars.grammar('start: A ("," A)~2\nA: "x" | "y"'), r"[xy],[xy],[xy]"),
        (grammars.grammar('root ::= "a" [0-9]{2} ("!" | "?")'), r"a[0-9]{2}[!?]"),
    ],
)
def test_patterns_grammars_and_choices(
    model: LanguageModel, grammar: Grammar, pattern: str, temperature: float
) -> None:
    answer = model.generate("the", constraint=grammar, temperature=temperature, seed=1, max_tokens=60)
    assert re.fullmatch(pattern, answer.text), answer.text
    assert answer.finish_reason == "stop"


def test_json_object(model: LanguageModel) -> None:
    for seed in range(5):
        answer = model.generate(
            "the",
            constraint=grammars.json_object(),
            logit_bias=closing_bias(model.tokenizer),
            seed=seed,
            temperature=1.0,
            max_tokens=400,
        )
        assert isinstance(json.loads(answer.text), dict)


def test_logprobs_are_the_models_own(model: LanguageModel) -> None:
    free = model.generate("the", temperature=0, max_tokens=1, logprobs=3)
    bound = model.generate(
        "the", temperature=0, max_tokens=1, logprobs=3, constraint=grammars.choice(["zq", "qz"])
    )
    assert free.logprobs is not None
    assert bound.logprobs is not None
    assert free.tokens != bound.tokens
    assert bound.logprobs[0].top == free.logprobs[0].top
    assert bound.logprobs[0].logprob < free.logprobs[0].logprob


def test_masked_tokens_have_no_probability_at_any_temperature(
    model: LanguageModel, compiler: ConstraintCompiler
) -> None:
    from bitqwen.generation.sampling import SamplingParams

    constraint = model.constraint(grammars.choice(["q", "z"]))
    logits = model.logits(model.tokenizer.encode("the"))[-1]
    allowed = set(ids_of(constraint, model.tokenizer.vocab_size))
    assert {model.tokenizer.decode([token]) for token in allowed} == {"q", "z"}
    for temperature in (0.0, 0.5, 100.0):
        sampler = SamplingParams(temperature=temperature, top_k=0, top_p=1.0, seed=1).sampler(
            model.tokenizer.vocab_size
        )
        distribution = dict(sampler.distribution(logits, constraint.mask()))
        assert distribution.keys() <= allowed
        assert sum(distribution.values()) == pytest.approx(1)


class TestToolCalls:
    def test_required(self, model: LanguageModel) -> None:
        names = set()
        for seed in range(12):
            answer = model.generate(
                "the",
                constraint=grammars.tool_calls(TOOLS, parallel=False),
                seed=seed,
                temperature=1.0,
                top_k=0,
                max_tokens=200,
                logit_bias=closing_bias(model.tokenizer),
            )
            parsed = parse_tool_calls(answer.text)
            assert parsed.text == ""
            assert len(parsed.calls) == 1
            call = parsed.calls[0]
            names.add(call.name)
            schema = TOOLS[0]["function"]["parameters"] if call.name == "weather" else {"maxProperties": 0}  # type: ignore[index]
            jsonschema.validate(json.loads(call.arguments), schema)
        assert names == {"weather", "stop it"}

    def test_named(self, model: LanguageModel) -> None:
        answer = model.generate("the", constraint=grammars.tool_calls(TOOLS, name="stop it", parallel=False))
        assert re.fullmatch(
            r'<tool_call>\n{"name": "stop it", "arguments": \{\s*\}}\n</tool_call>', answer.text
        ), answer.text

    def test_parallel_allows_several(self, tokenizer: Tokenizer, compiler: ConstraintCompiler) -> None:
        call = '<tool_call>\n{"name": "stop it", "arguments": {}}\n</tool_call>'
        for parallel in (True, False):
            constraint = compiler.constraint(grammars.tool_calls(TOOLS, parallel=parallel))
            for token in tokenizer.encode(call):
                constraint.accept(token)
            assert constraint.accepting
            assert constraint.done is not parallel
            if parallel:
                for token in tokenizer.encode("\n" + call):
                    constraint.accept(token)
                assert constraint.accepting

    def test_auto_leaves_text_free_and_binds_strict_tools(
        self, tokenizer: Tokenizer, compiler: ConstraintCompiler
    ) -> None:
        grammar = grammars.tool_calls(TOOLS, mode="auto")
        constraint = compiler.constraint(grammar)
        assert constraint.accepting
        for token in tokenizer.encode("Any <tool> text.\n"):
            constraint.accept(token)
        assert constraint.accepting
        head = '<tool_call>\n{"name": "'
        for token in tokenizer.encode(head):
            constraint.accept(token)
        assert not constraint.accepting
        names = {tokenizer.token_bytes(token)[:1] for token in ids_of(constraint, tokenizer.vocab_size)}
        assert names == {b"w", b"s"}
        loose, strict = (compiler.constraint(grammar) for _ in range(2))
        for token in tokenizer.encode(head + 'weather", "arguments": {"anything": 1}}\n</tool_call>\nmore'):
            loose.accept(token)
        assert loose.accepting
        with pytest.raises(UsageError):
            for token in tokenizer.encode(head + 'stop it", "arguments": {"anything": 1}}'):
                strict.accept(token)

    def test_auto_with_a_schema_for_answers_without_calls(
        self, tokenizer: Tokenizer, compiler: ConstraintCompiler
    ) -> None:
        grammar = grammars.tool_calls(TOOLS, mode="auto", text_schema={"enum": [12]})
        for answer in ("12", '<tool_call>\n{"name": "stop it", "arguments": {}}\n</tool_call>'):
            constraint = compiler.constraint(grammar)
            for token in tokenizer.encode(answer):
                constraint.accept(token)
            assert constraint.accepting
        with pytest.raises(UsageError):
            compiler.constraint(grammar).accept(tokenizer.encode("T")[0])

    def test_what_is_no_tool_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"'nope' is required.*'weather', 'stop it'"):
            grammars.tool_calls(TOOLS, name="nope")
        with pytest.raises(UsageError, match="none"):
            grammars.tool_calls([])
        with pytest.raises(UsageError, match="Tool 1 is no function"):
            grammars.tool_calls([{"type": "function"}])
        with pytest.raises(UsageError, match=r"'f'.*allowed: a schema"):
            grammars.tool_calls([{"function": {"name": "f", "parameters": []}}])


class TestRefusals:
    @pytest.mark.parametrize(
        ("grammar", "reason"),
        [
            (grammars.json_schema({"type": "objct"}), "json_schema was refused.*objct"),
            (grammars.json_schema({"not": {"type": "string"}}), 'refused.*"not"'),
            (grammars.json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
            (grammars.json_schema({"type": "string", "format": "postcode"}), "postcode"),
            (grammars.json_schema({"$ref": "#/$defs/nowhere"}), "refused"),
            (grammars.json_schema({"$ref": "file:///etc/passwd"}), "refused"),
            (grammars.json_schema({"type": "integer", "minimum": 5, "maximum": 2}), "refused"),
            (grammars.regex("(a"), r"regex was refused.*unclosed group"),
            (grammars.grammar("start: missing"), "grammar was refused.*missing"),
            (grammars.grammar("begin: /a/"), "grammar was refused"),
        ],
    )
    def test_with_the_reason(self, compiler: ConstraintCompiler, grammar: Grammar, reason: str) -> None:
        with pytest.raises(UsageError, match=re.compile(reason, re.DOTALL)) as error:
            compiler.constraint(grammar)
        assert "<state>" not in error.value.message
        assert len(error.value.message) < 700

    @pytest.mark.parametrize(
        ("make", "argument", "message"),
        [
            (grammars.json_schema, [], "allowed: a schema"),
            (grammars.json_schema, {"const": float("nan")}, "JSON cannot express"),
            (grammars.json_schema, {"const": {1, 2}}, "JSON cannot express"),
            (grammars.json_schema, {"description": "x" * grammars.MAX_BYTES}, "bytes; allowed"),
            (grammars.regex, "", "not empty"),
            (grammars.regex, "\ud800", "surrogates"),
            (grammars.grammar, "x" * (grammars.MAX_BYTES + 1), "characters; allowed"),
            (grammars.grammar, "root ::= (", "refused"),
            (grammars.choice, [], "allowed: 1 to"),
            (grammars.choice, "yes", "allowed: 1 to"),
            (grammars.choice, ["a", ""], "not empty"),
        ],
    )
    def test_of_what_is_no_grammar(self, make: Callable[[Any], Grammar], argument: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            make(argument)

    def test_of_deep_nesting(self) -> None:
        schema: dict[str, Any] = {"type": "string"}
        for _ in range(5000):
            schema = {"type": "array", "items": schema}
        with pytest.raises(UsageError, match="nested too deeply"):
            grammars.json_schema(schema)


def test_a_refused_token_is_an_error_and_an_allowed_one_goes_on(
    tokenizer: Tokenizer, compiler: ConstraintCompiler
) -> None:
    constraint = compiler.constraint(grammars.choice(["ab"]))
    with pytest.raises(UsageError):
        constraint.accept(tokenizer.encode("x")[0])


def test_answers_to_one_grammar_do_not_share_their_place(
    tokenizer: Tokenizer, compiler: ConstraintCompiler
) -> None:
    first, second = (compiler.constraint(grammars.choice(["q", "zz"])) for _ in range(2))
    first.accept(tokenizer.encode("q")[0])
    assert first.done
    assert not second.done
    assert len(ids_of(second, tokenizer.vocab_size)) >= 2


def test_the_bytes_are_those_of_the_grammar(tokenizer: Tokenizer, compiler: ConstraintCompiler) -> None:
    decomposed = "cafe\u0301"  # the tokenizer alone would compose it
    constraint = compiler.constraint(grammars.choice([decomposed]))
    written = b""
    while not constraint.done:
        token = max(ids_of(constraint, tokenizer.vocab_size), key=lambda t: len(tokenizer.token_bytes(t)))
        written += tokenizer.token_bytes(token)
        constraint.accept(token)
    assert written == decomposed.encode()


def test_control_tokens_never_stand_for_their_names(
    tokenizer: Tokenizer, compiler: ConstraintCompiler
) -> None:
    constraint = compiler.constraint(grammars.choice(["<|im_start|>"]))
    assert tokenizer.control["<|im_start|>"] not in ids_of(constraint, tokenizer.vocab_size)


def test_white_space_ends(tokenizer: Tokenizer, compiler: ConstraintCompiler) -> None:
    constraint = compiler.constraint(grammars.json_object())
    constraint.accept(tokenizer.encode("{")[0])
    space = tokenizer.encode(" ")[0]
    constraint.accept(space)
    assert space not in ids_of(constraint, tokenizer.vocab_size)


def test_an_answer_ends_with_its_grammar_even_if_the_model_may_not_end(model: LanguageModel) -> None:
    answer = model.generate(
        "the", constraint=grammars.choice(["q"]), ignore_eos=True, max_tokens=1, temperature=0
    )
    assert (answer.text, answer.finish_reason, answer.stopped_by) == ("q", "stop", None)
