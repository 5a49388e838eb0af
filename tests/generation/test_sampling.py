from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bitqwen import _native
from bitqwen.errors import ModelFileError, UsageError
from bitqwen.generation.sampling import SamplingParams


def logits(count: int, seed: int = 0, spread: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=spread, size=count).astype(np.float32)


def probabilities(sampler: _native.Sampler, row: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    dense = np.zeros(len(row))
    for token, probability in sampler.distribution(row, mask):
        dense[token] = probability
    return dense


def softmax(row: np.ndarray) -> np.ndarray:
    weights = np.exp(row.astype(np.float64) - row.max())
    return weights / weights.sum()


class TestAgainstTransformers:
    """The order and the meaning of the settings are those of transformers' own processors."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
            {"temperature": 1.5, "top_k": 0, "top_p": 0.9},
            {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
            {"temperature": 0.5, "top_k": 5, "top_p": 1.0, "repetition_penalty": 1.3},
            {"temperature": 2.0, "top_k": 50, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 0.8},
            {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        ],
    )
    def test_same_distribution(self, settings: dict[str, Any]) -> None:
        torch = pytest.importorskip("torch")
        processors = pytest.importorskip("transformers.generation.logits_process")
        history = [3, 5, 5, 700, 12]
        chain = [processors.RepetitionPenaltyLogitsProcessor(settings.get("repetition_penalty", 1.0))]
        chain.append(processors.TemperatureLogitsWarper(settings["temperature"]))
        if settings["top_k"]:
            chain.append(processors.TopKLogitsWarper(settings["top_k"]))
        if settings["top_p"] < 1:
            chain.append(processors.TopPLogitsWarper(settings["top_p"]))
        if settings.get("min_p"):
            chain.append(processors.MinPLogitsWarper(settings["min_p"]))
        for seed in range(20):
            row = logits(1000, seed)
            scores = torch.from_numpy(row)[None]
            for processor in chain:
                scores = processor(torch.tensor([history]), scores)
            expected = torch.softmax(scores.double(), dim=-1)[0].numpy()
            sampler = SamplingParams(**settings).sampler(1000)
            sampler.add_prompt(history)
            np.testing.assert_allclose(probabilities(sampler, row), expected, atol=1e-5)


def test_presence_and_frequency_penalties_count_generated_tokens_only() -> None:
    row = logits(50)
    params = SamplingParams(temperature=1, top_k=0, top_p=1, presence_penalty=0.5, frequency_penalty=0.25)
    sampler = params.sampler(50)
    sampler.add_prompt([1, 1, 2])
    np.testing.assert_allclose(probabilities(sampler, row), softmax(row), atol=1e-6)
    for token in (2, 3, 3):
        sampler.accept(token)
    expected = row.copy()
    expected[2] -= 0.5 + 0.25
    expected[3] -= 0.5 + 2 * 0.25
    np.testing.assert_allclose(probabilities(sampler, row), softmax(expected), atol=1e-6)


def test_the_penalty_window_forgets() -> None:
    row = logits(50)
    sampler = SamplingParams(temperature=1, top_k=0, top_p=1, presence_penalty=1, penalty_window=2).sampler(
        50
    )
    for token in (4, 5, 6):
        sampler.accept(token)
    expected = row.copy()
    expected[[5, 6]] -= 1
    np.testing.assert_allclose(probabilities(sampler, row), softmax(expected), atol=1e-6)


def test_bias_is_added_and_forbids() -> None:
    row = logits(50)
    params = SamplingParams(temperature=1, top_k=0, top_p=1, logit_bias={7: 2.5, 8: -math.inf})
    expected = row.copy()
    expected[7] += 2.5
    expected[8] = -np.inf
    np.testing.assert_allclose(probabilities(params.sampler(50), row), softmax(expected), atol=1e-6)


def test_a_mask_allows_its_tokens_only() -> None:
    row = logits(70)
    mask = np.zeros(3, dtype=np.uint32)
    for token in (1, 33, 69):
        mask[token // 32] |= np.uint32(1 << token % 32)
    expected = np.full_like(row, -np.inf)
    expected[[1, 33, 69]] = row[[1, 33, 69]]
    sampler = SamplingParams(temperature=1, top_k=0, top_p=1).sampler(70)
    np.testing.assert_allclose(probabilities(sampler, row, mask), softmax(expected), atol=1e-6)
    assert sampler.sample(row, mask) in (1, 33, 69)
    with pytest.raises(UsageError, match="no token may follow"):
        sampler.sample(row, np.zeros(3, dtype=np.uint32))


@pytest.mark.parametrize("top_k", [0, 6])
def test_draws_are_spread_as_the_distribution_says(top_k: int) -> None:
    row = logits(12, seed=4, spread=1.0)
    sampler = SamplingParams(temperature=1, top_k=top_k, top_p=1, seed=5).sampler(12)
    expected = probabilities(sampler, row)
    draws = 20_000
    counts = np.zeros(12)
    for _ in range(draws):
        token = sampler.sample(row)
        counts[token] += 1
        sampler.accept(token)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi_square = ((counts[kept] - draws * expected[kept]) ** 2 / (draws * expected[kept])).sum()
    assert chi_square < (31.26 if top_k == 0 else 20.52)  # 99.9 % points for 11 and 5 degrees of freedom


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    def draw(seed: int) -> list[int]:
        sampler = SamplingParams(temperature=1, top_k=0, top_p=1, seed=seed).sampler(200)
        out = []
        for step in range(40):
            out.append(sampler.sample(logits(200, step)))
            sampler.accept(out[-1])
        return out

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_sampling_changes_nothing_until_a_token_is_accepted() -> None:
    row = logits(200)
    row.flags.writeable = False
    sampler = SamplingParams(temperature=1, presence_penalty=1, seed=1).sampler(200)
    assert {sampler.sample(row) for _ in range(20)} == {sampler.sample(row)}
    assert sampler.accepted == 0


class TestNeeded:
    """What a sampler says it needs is enough for the same tokens, and it says so wherever a few are."""

    @pytest.mark.parametrize(
        ("settings", "top", "has_margin"),
        [
            ({"temperature": 0.0}, 1, False),
            ({"temperature": 0.0, "top_k": 20, "top_p": 0.8, "min_p": 0.1}, 1, False),
            ({"temperature": 0.7, "top_k": 20, "top_p": 0.8}, 20, False),
            ({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1}, 20, False),
            ({"temperature": 0.7, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1}, 20, True),
            ({"temperature": 1.2, "min_p": 0.05, "presence_penalty": 1.0}, 0, True),
            ({"temperature": 1.0, "top_k": 5, "logit_bias": [(3, -5.0), (7, -math.inf)]}, 5, False),
        ],
    )
    def test_the_same_tokens_without_the_others(
        self, settings: dict[str, Any], top: int, has_margin: bool
    ) -> None:
        sampler = _native.Sampler(900, seed=3, **settings)
        sampler.add_prompt([1, 2, 3, 899])
        for step in range(300):
            row = logits(1000, step)
            row[950] = 50  # padding
            needed = sampler.needed()
            assert needed is not None
            assert (needed[0], needed[1] >= 0) == (top, has_margin)
            counted = row[:900].copy()
            counted[np.frombuffer(needed[2], dtype=np.int32)] = -np.inf
            keep = np.ones(1000, dtype=bool)
            keep[900:] = False
            if needed[0]:
                keep &= row >= np.sort(counted)[-needed[0]]
            if needed[1] >= 0:
                keep &= row >= counted.max() - np.float32(needed[1])
            few = np.where(keep, row, np.float32(-np.inf))
            token = sampler.sample(row)
            assert sampler.sample(few) == token
            assert sampler.distribution(few) == sampler.distribution(row)
            sampler.accept(token)

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 1.0},
            {"temperature": 1.0, "top_p": 0.9},
            {"temperature": 1.0, "top_p": 0.9, "min_p": 0.1},
            {"temperature": 1.0, "top_k": 900},
            {"temperature": 0.0, "repetition_penalty": 0.9},
            {"temperature": 0.0, "presence_penalty": -0.1},
            {"temperature": 0.0, "frequency_penalty": -0.1},
            {"temperature": 0.0, "logit_bias": [(3, 0.1)]},
        ],
    )
    def test_all_where_they_are_summed_or_raised(self, settings: dict[str, Any]) -> None:
        assert _native.Sampler(900, **settings).needed() is None


def test_greedy_is_the_best_and_padding_is_never_chosen() -> None:
    row = logits(100)
    row[99] = 1000
    assert SamplingParams(temperature=0).sampler(99).sample(row) == int(row[:99].argmax())


def test_logprobs_are_log_softmax() -> None:
    row = logits(5000)
    expected = row - row.max() - np.log(np.exp(row.astype(np.float64) - row.max()).sum())
    chosen, best = _native.token_logprobs(row, 17, 5)
    assert chosen == pytest.approx(expected[17], abs=1e-5)
    order = np.argsort(-row, kind="stable")[:5]
    assert [token for token, _ in best] == order.tolist()
    np.testing.assert_allclose([value for _, value in best], expected[order], atol=1e-5)


def test_logits_that_are_not_numbers_are_the_models_fault() -> None:
    row = logits(100)
    row[50] = np.nan
    with pytest.raises(ModelFileError, match="not finite"):
        SamplingParams().sampler(100).sample(row)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, "0 to 100"),
        ("temperature", math.nan, "0 to 100"),
        ("temperature", "hot", "a number"),
        ("top_k", -1, "0 to"),
        ("top_k", 1.5, "a whole number"),
        ("top_p", 0, "above 0, up to 1"),
        ("top_p", 1.01, "above 0, up to 1"),
        ("min_p", 2, "0 to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 11, "-10 to 10"),
        ("frequency_penalty", math.inf, "-10 to 10"),
        ("penalty_window", -1, "0 to"),
        ("seed", -1, "0 to"),
        ("seed", True, "a whole number"),
        ("logit_bias", [1], "a mapping"),
        ("logit_bias", {"1": 2}, "a whole number"),
        ("logit_bias", {1: math.inf}, "or -inf"),
    ],
)
def test_a_value_outside_its_range_is_refused_with_the_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})
    assert name in caught.value.message
    assert allowed in caught.value.message


def test_a_bias_on_a_token_that_the_model_does_not_have() -> None:
    with pytest.raises(UsageError, match="token 50; allowed: 0 to 49"):
        SamplingParams(logit_bias={50: 1.0}).sampler(50)


RECOMMENDED = {
    "general.sampling.temp": 0.25,
    "general.sampling.top_k": 9,
    "general.sampling.penalty_repeat": 1.1,
    "general.sampling.top_p": 7.0,
}


class TestDefaults:
    def test_the_files_recommendations_where_they_are_sound(self) -> None:
        params = SamplingParams.from_metadata(RECOMMENDED)
        assert (params.temperature, params.top_k, params.repetition_penalty) == (0.25, 9, 1.1)
        assert params.top_p == SamplingParams().top_p

    def test_overrides_win_and_none_is_no_override(self) -> None:
        params = SamplingParams.from_metadata(RECOMMENDED).with_overrides({"top_k": 3, "temperature": None})
        assert (params.temperature, params.top_k, params.repetition_penalty) == (0.25, 3, 1.1)

    def test_an_explicit_greedy_leaves_recommended_penalties_out(self) -> None:
        recommended = SamplingParams.from_metadata(RECOMMENDED)
        assert recommended.with_overrides({"temperature": 0}).repetition_penalty == 1.0
        named = recommended.with_overrides({"temperature": 0, "repetition_penalty": 1.2})
        assert named.repetition_penalty == 1.2
