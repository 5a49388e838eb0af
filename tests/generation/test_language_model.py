from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeModel, script

from bitqwen.errors import ContextLengthError, ModelFileError, UsageError
from bitqwen.generation.language_model import LanguageModel
from bitqwen.generation.results import Piece
from bitqwen.generation.sampling import SamplingParams
from bitqwen.generation.tokenizer import Tokenizer

PROMPT = "Once upon a time"


def speaker(tokenizer: Tokenizer, answer: str, prompt: str = PROMPT, **options: Any) -> LanguageModel:
    """A model that goes on with ``answer`` after ``prompt`` and then ends its turn."""
    rule = script(tokenizer.encode(answer), tokenizer.control["<|im_end|>"], len(tokenizer.encode(prompt)))
    return LanguageModel(FakeModel(608, rule, **options), tokenizer)  # type: ignore[arg-type]


@pytest.fixture
def rambler(tokenizer: Tokenizer) -> LanguageModel:
    """A model without end, whose every token depends on all before it."""
    return LanguageModel(FakeModel(608, lambda tokens: (sum(tokens) * 31 + len(tokens)) % 590), tokenizer)  # type: ignore[arg-type]


def test_the_answer_ends_at_the_stop_token_which_is_no_part_of_it(tokenizer: Tokenizer) -> None:
    result = speaker(tokenizer, " there was 日本 🚀.").generate(PROMPT, temperature=0)
    assert result.text == str(result) == " there was 日本 🚀."
    assert result.tokens == tokenizer.encode(" there was 日本 🚀.")
    assert result.finish_reason == "stop"
    assert result.stopped_by == tokenizer.control["<|im_end|>"]


def test_either_end_stops(tokenizer: Tokenizer) -> None:
    rule = script([5, 6], tokenizer.control["<|endoftext|>"], 1)
    model = LanguageModel(FakeModel(608, rule), tokenizer)  # type: ignore[arg-type]
    assert model.generate([9], temperature=0).tokens == [5, 6]


def test_a_stream_is_pieces_of_text_that_know_their_token(tokenizer: Tokenizer) -> None:
    stream = speaker(tokenizer, " there 🚀").stream(PROMPT, temperature=0, logprobs=2)
    pieces = list(stream)
    assert all(isinstance(piece, Piece) and isinstance(piece, str) for piece in pieces)
    assert "".join(pieces) == " there 🚀" == stream.text
    assert [piece.token for piece in pieces] == tokenizer.encode(" there 🚀") == stream.tokens
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(piece.logprob is not None and piece.logprob <= 0 for piece in pieces)
    assert type(pieces[0].text) is str


@pytest.mark.parametrize("stop", ["upon", "n a t", [" xyz", "e w", "was"]])
def test_a_stop_string_ends_the_text_before_it(tokenizer: Tokenizer, stop: str | list[str]) -> None:
    answer = " and once upon a time there was no end"
    stops = [stop] if isinstance(stop, str) else stop
    result = speaker(tokenizer, answer).generate(PROMPT, temperature=0, stop=stop)
    cut = min(answer.find(one) for one in stops if one in answer)
    assert result.text == answer[:cut]
    assert result.finish_reason == "stop"
    assert result.stopped_by in stops


def test_what_might_have_been_a_stop_string_is_not_lost(tokenizer: Tokenizer) -> None:
    model = speaker(tokenizer, " to be")
    assert model.generate(PROMPT, temperature=0, stop="be or not").text == " to be"
    cut = model.generate(PROMPT, temperature=0, stop="be or not", max_tokens=len(tokenizer.encode(" to be")))
    assert (cut.text, cut.finish_reason) == (" to be", "length")


def test_max_tokens_ends_with_length(rambler: LanguageModel) -> None:
    result = rambler.generate(PROMPT, temperature=0, max_tokens=5)
    assert (len(result.tokens), result.finish_reason, result.stopped_by) == (5, "length", None)
    assert result.timings.generated_tokens == 5
    assert result.timings.decode_steps == 4


def test_an_unfinished_character_at_the_end_is_one_replacement(tokenizer: Tokenizer) -> None:
    cut = len(tokenizer.encode("🚀")) - 1
    result = speaker(tokenizer, "🚀").generate(PROMPT, temperature=0, max_tokens=cut)
    assert result.text == "\ufffd"


def test_control_tokens_are_not_shown(tokenizer: Tokenizer) -> None:
    answer = [*tokenizer.encode("a"), tokenizer.control["<|fim_prefix|>"], *tokenizer.encode("b")]
    rule = script(answer, tokenizer.control["<|im_end|>"], 1)
    result = LanguageModel(FakeModel(608, rule), tokenizer).generate([9], temperature=0)  # type: ignore[arg-type]
    assert (result.text, result.tokens) == ("ab", answer)


class Anything:
    """A constraint that allows all tokens."""

    done = False

    def mask(self) -> None:
        return None

    def accept(self, token: int) -> None:
        pass


class TestScreenedHead:
    """The fake engine leaves out all but what a screen asks for."""

    def models(self, tokenizer: Tokenizer, rule: Any) -> list[LanguageModel]:
        return [
            LanguageModel(FakeModel(608, rule, screened=screened), tokenizer)  # type: ignore[arg-type]
            for screened in (False, True)
        ]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"ignore_eos": True},
            {"logprobs": 3},
            {"repetition_penalty": 5.0},
            {"frequency_penalty": 10.0},
            {"presence_penalty": 10.0},
            {"logit_bias": {5: -100}},
            {"temperature": 2.0, "seed": 1, "top_k": 0, "top_p": 1.0},
            {"temperature": 2.0, "seed": 1, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.3},
            {
                "temperature": 3.0,
                "seed": 2,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.02,
                "frequency_penalty": 1.0,
            },
            {"temperature": 3.0, "seed": 2, "top_k": 0, "top_p": 0.9},
            {"repetition_penalty": 0.5},
            {"logit_bias": {5: 3.0}},
        ],
    )
    def test_text_is_that_of_the_whole_head(self, tokenizer: Tokenizer, options: dict[str, Any]) -> None:
        # Tokens that recur, a stop token that may have to be passed over, padding of both kinds at the top.
        rule = script([5, 5, 6, 606, 607, 5, 7], tokenizer.control["<|im_end|>"], 3)
        results = [
            model.generate([1, 2, 3], **{"temperature": 0, "max_tokens": 12, **options})
            for model in self.models(tokenizer, rule)
        ]
        assert results[0].tokens == results[1].tokens
        assert results[0].logprobs == results[1].logprobs

    def test_each_token_says_what_it_needs(self, tokenizer: Tokenizer) -> None:
        model = self.models(tokenizer, script([5, 606], tokenizer.control["<|im_end|>"], 2))[1]
        fake: Any = model.model
        model.generate([1, 2], temperature=0, max_tokens=3, presence_penalty=1.0)
        assert [(screen.top, screen.margin, screen.rows) for screen in fake.screens] == [(1, None, 606)] * 3
        assert [5 in screen.lowered for screen in fake.screens] == [False, True, True]

    @pytest.mark.parametrize("options", [{"logprobs": 0}, {"constraint": Anything()}, {"top_k": 0}])
    def test_all_logits_where_all_are_looked_at(self, tokenizer: Tokenizer, options: dict[str, Any]) -> None:
        model = self.models(tokenizer, script([5, 6], tokenizer.control["<|im_end|>"], 2))[1]
        fake: Any = model.model
        model.generate([1, 2], max_tokens=2, **options)
        assert fake.screens == [None, None]


class TestContext:
    def test_the_context_ends_an_answer_with_length(self, rambler: LanguageModel) -> None:
        ids = [1] * 60
        result = rambler.generate(ids, temperature=0, max_tokens=None)
        # The last token needs no place: nothing comes after it.
        assert (len(result.tokens), result.finish_reason) == (64 - 60 + 1, "length")
        assert len(rambler.generate([1] * 64, temperature=0).tokens) == 1

    def test_a_longer_prompt_is_an_error_with_both_numbers(self, rambler: LanguageModel) -> None:
        with pytest.raises(ContextLengthError, match=r"65 tokens.*holds 64"):
            rambler.stream([1] * 65)

    @pytest.mark.parametrize("prompt", ["", [], ()])
    def test_an_empty_prompt_is_an_error(self, rambler: LanguageModel, prompt: Any) -> None:
        with pytest.raises(UsageError, match="prompt is empty"):
            rambler.stream(prompt)


class TestPrefixReuse:
    def test_only_what_is_new_is_read(self, rambler: LanguageModel) -> None:
        first = rambler.generate([1, 2, 3], temperature=0, max_tokens=4)
        fake: Any = rambler.model
        fake.fed.clear()
        again = rambler.generate([1, 2, 3, *first.tokens, 7], temperature=0, max_tokens=1)
        # The last token of the first answer was never read.
        assert fake.fed == [[first.tokens[-1], 7]]
        assert (again.timings.prompt_tokens, again.timings.cached_tokens) == (8, 6)
        assert len(fake.sessions) == 1

    def test_the_answer_does_not_depend_on_it(self, rambler: LanguageModel, tokenizer: Tokenizer) -> None:
        fake: Any = rambler.model
        for ids in ([1, 2, 3], [1, 2, 3, 4], [1, 2], [1, 2], [8]):
            fresh = LanguageModel(FakeModel(608, fake.rule), tokenizer)  # type: ignore[arg-type]
            options: Any = {"seed": 3, "temperature": 1.2, "max_tokens": 8}
            assert rambler.generate(ids, **options).tokens == fresh.generate(ids, **options).tokens

    def test_overlapping_streams_do_not_disturb_each_other(self, rambler: LanguageModel) -> None:
        alone = [rambler.generate(ids, temperature=0, max_tokens=6).tokens for ids in ([1, 2], [3, 4])]
        streams = [rambler.stream(ids, temperature=0, max_tokens=6) for ids in ([1, 2], [3, 4])]
        for _ in zip(*streams, strict=True):
            pass
        assert [stream.tokens for stream in streams] == alone
        for stream in streams:
            stream.close()
        fake: Any = rambler.model
        assert sum(not session.closed for session in fake.sessions) == 1
        rambler.close()
        assert all(session.closed for session in fake.sessions)

    def test_threads_may_share_a_model(self, rambler: LanguageModel) -> None:
        expected = {n: rambler.generate([n, n], temperature=0, max_tokens=6).tokens for n in range(1, 9)}
        found: dict[int, list[int]] = {}

        def work(n: int) -> None:
            found[n] = rambler.generate([n, n], temperature=0, max_tokens=6).tokens

        threads = [threading.Thread(target=work, args=(n,)) for n in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == expected

    @pytest.mark.parametrize("position", [2, 5])
    def test_an_interrupt_leaves_the_conversation_usable(self, rambler: LanguageModel, position: int) -> None:
        expected = rambler.generate([1, 2, 3], temperature=0, max_tokens=6).tokens
        fake: Any = rambler.model
        fake.sessions[0].truncate(0)
        fake.interrupt_at = position
        with pytest.raises(KeyboardInterrupt):
            rambler.generate([1, 2, 3], temperature=0, max_tokens=6)
        assert rambler.generate([1, 2, 3], temperature=0, max_tokens=6).tokens == expected
        assert len(fake.sessions) == 1

    def test_leaving_a_stream_early_keeps_what_was_read(self, rambler: LanguageModel) -> None:
        with rambler.stream([1, 2, 3], temperature=0) as stream:
            next(stream)
        assert stream.finish_reason is None
        fake: Any = rambler.model
        fake.fed.clear()
        rambler.generate([1, 2, 3, 9], temperature=0, max_tokens=1)
        assert fake.fed == [[9]]


class TestOptions:
    def test_the_same_seed_gives_the_same_text(self, rambler: LanguageModel) -> None:
        first = rambler.generate([1], temperature=5, top_k=0, top_p=1, max_tokens=12)
        again = rambler.generate([1], temperature=5, top_k=0, top_p=1, max_tokens=12, seed=first.seed)
        other = rambler.generate([1], temperature=5, top_k=0, top_p=1, max_tokens=12, seed=first.seed + 1)
        assert first.tokens == again.tokens != other.tokens

    def test_the_models_recommendations_hold_where_nothing_is_given(self, tokenizer: Tokenizer) -> None:
        fake: Any = FakeModel(608, len)
        greedy = LanguageModel(fake, tokenizer, sampling=SamplingParams(temperature=0))
        assert greedy.generate([1], max_tokens=4).tokens == [1, 2, 3, 4]

    def test_stop_token_ids_and_ignore_eos(self, tokenizer: Tokenizer) -> None:
        model = speaker(tokenizer, " there was")
        ids = tokenizer.encode(" there was")
        stopped = model.generate(PROMPT, temperature=0, stop_token_ids=[ids[1]])
        assert (stopped.tokens, stopped.stopped_by) == (ids[:1], ids[1])
        longer = model.generate(PROMPT, temperature=0, ignore_eos=True, max_tokens=len(ids) + 5)
        assert longer.tokens[: len(ids)] == ids
        assert len(longer.tokens) == len(ids) + 5
        assert not set(longer.tokens) & tokenizer.stop_ids

    def test_logprobs_are_of_the_models_own_distribution(
        self, rambler: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        result = rambler.generate([1, 2], temperature=3, logit_bias={5: 30}, max_tokens=3, logprobs=4, seed=1)
        assert result.logprobs is not None
        rows = rambler.logits([1, 2, *result.tokens])[1:-1, : tokenizer.vocab_size].astype(np.float64)
        for row, entry, token in zip(rows, result.logprobs, result.tokens, strict=True):
            expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert entry.token == token
            assert entry.logprob == pytest.approx(expected[token], abs=1e-4)
            assert [other.token for other in entry.top] == np.argsort(-expected)[:4].tolist()
            assert entry.data == tokenizer.token_bytes(token)

    def test_a_constraint_decides_what_may_follow(self, rambler: LanguageModel) -> None:
        class Alternating:
            accepted: list[int]
            done = False

            def __init__(self) -> None:
                self.accepted = []

            def mask(self) -> np.ndarray:
                bits = np.zeros(19, dtype=np.uint32)
                token = 40 + len(self.accepted) % 2
                bits[token // 32] = 1 << token % 32
                return bits

            def accept(self, token: int) -> None:
                self.accepted.append(token)

        constraint = Alternating()
        assert rambler.generate([1], max_tokens=4, constraint=constraint).tokens == [40, 41, 40, 41]
        assert constraint.accepted == [40, 41, 40, 41]

        class OneWord(Alternating):
            @property
            def done(self) -> bool:  # type: ignore[override]
                return len(self.accepted) == 2

        answer = rambler.generate([1], max_tokens=4, constraint=OneWord())
        assert (answer.tokens, answer.finish_reason) == ([40, 41], "stop")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 5}, "no option 'max_new_tokens'"),
            ({"max_tokens": 0}, "max_tokens is 0"),
            ({"temperature": -1}, "temperature is -1"),
            ({"logprobs": 101}, "logprobs is 101"),
            ({"stop": [""]}, "stop string"),
            ({"stop_token_ids": [-1]}, "stop token id"),
            ({"logit_bias": {605: 1, 606: 1}}, "token 606; allowed: 0 to 605"),
            ({"tools": [{}]}, "needs a prompt of messages"),
            ({"continue_final_message": True}, "needs a prompt of messages"),
        ],
    )
    def test_a_bad_option_is_named_before_anything_runs(
        self, rambler: LanguageModel, options: Any, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            rambler.stream("text", **options)
        fake: Any = rambler.model
        assert not fake.sessions


class TestPrompts:
    def test_text_is_gone_on_with_and_messages_are_answered(
        self, rambler: LanguageModel, tokenizer: Tokenizer
    ) -> None:
        assert rambler.encode_prompt("a<|im_end|>") == tokenizer.encode("a<|im_end|>")
        assert rambler.encode_prompt("a<|im_end|>", allow_special=True) == tokenizer.encode(
            "a<|im_end|>", True
        )
        messages = [{"role": "user", "content": "a"}]
        assert rambler.encode_prompt(messages) == rambler.template.encode(tokenizer, messages)
        assert rambler.encode_prompt((1, np.int64(2))) == [1, 2]

    def test_bos_comes_first_where_the_model_wants_it(self, small_metadata: dict[str, Any]) -> None:
        tokenizer = Tokenizer.from_gguf({**small_metadata, "tokenizer.ggml.add_bos_token": True})
        fake: Any = FakeModel(608, len)
        ids = LanguageModel(fake, tokenizer).encode_prompt("a")
        assert ids == [tokenizer.bos_id, *tokenizer.encode("a")]

    @pytest.mark.parametrize("ids", [[608], [-1], [1.5], ["a"]])
    def test_ids_that_the_model_does_not_have(self, rambler: LanguageModel, ids: Any) -> None:
        with pytest.raises(UsageError, match="token id"):
            rambler.encode_prompt(ids)
        with pytest.raises(UsageError, match="token id"):
            rambler.logits(ids)


def test_a_tokenizer_of_another_model_is_refused(tokenizer: Tokenizer) -> None:
    fake: Any = FakeModel(500, len)
    with pytest.raises(ModelFileError, match="up to 605"):
        LanguageModel(fake, tokenizer)


class TestChat:
    def test_it_remembers(self, rambler: LanguageModel) -> None:
        rambler.model.context = 1000  # type: ignore[misc]
        chat = rambler.chat("Be brief.", temperature=0, max_tokens=4)
        first = chat.send("One")
        assert chat.messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": first.text},
        ]
        second = "".join(chat.stream("Two"))
        assert chat.messages[3:] == [
            {"role": "user", "content": "Two"},
            {"role": "assistant", "content": second},
        ]
        assert chat.last is not None
        assert chat.last.timings.cached_tokens > 0

    def test_an_answer_left_early_is_kept_as_far_as_it_came(self, rambler: LanguageModel) -> None:
        rambler.model.context = 1000  # type: ignore[misc]
        chat = rambler.chat(temperature=0)
        pieces = chat.stream("One")
        said = next(pieces) + next(pieces)
        pieces.close()
        assert chat.messages == [{"role": "user", "content": "One"}, {"role": "assistant", "content": said}]

    def test_a_turn_that_fails_leaves_no_trace(self, rambler: LanguageModel) -> None:
        chat = rambler.chat()
        with pytest.raises(ContextLengthError):
            chat.send("word " * 200)
        assert chat.messages == []
