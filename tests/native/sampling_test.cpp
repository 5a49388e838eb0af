#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "errors.h"
#include "sampling/history.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"
#include "sampling/scan.h"

using namespace bitqwen;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(size_t count, unsigned seed, float spread = 3.0F) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> logits(count);
  for (float& logit : logits) logit = normal(generator);
  return logits;
}

// The definition, slowly and in double: penalties, temperature, then each cut over a full ranking.
std::map<int32_t, double> reference(std::vector<float> logits, const SamplingSettings& s,
                                    const std::vector<int32_t>& prompt,
                                    const std::vector<int32_t>& generated) {
  std::vector<double> x(logits.begin(), logits.end());
  for (const auto& [token, bias] : s.logit_bias) x[static_cast<size_t>(token)] += static_cast<double>(bias);
  std::map<int32_t, int> all;
  std::map<int32_t, int> own;
  for (const int32_t token : prompt) ++all[token];
  for (const int32_t token : generated) ++all[token], ++own[token];
  for (const auto& [token, count] : all) {
    double& value = x[static_cast<size_t>(token)];
    const auto penalty = static_cast<double>(s.repetition_penalty);
    value = value > 0 ? value / penalty : value * penalty;
  }
  for (const auto& [token, count] : own) {
    x[static_cast<size_t>(token)] -=
        static_cast<double>(s.presence_penalty) + count * static_cast<double>(s.frequency_penalty);
  }
  std::vector<int32_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
  });
  if (s.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(s.top_k)));
  const double best = x[static_cast<size_t>(order[0])];
  std::vector<double> weights;
  for (const int32_t token : order) {
    weights.push_back(std::exp((x[static_cast<size_t>(token)] - best) / static_cast<double>(s.temperature)));
  }
  const double mass = std::accumulate(weights.begin(), weights.end(), 0.0) * static_cast<double>(s.top_p);
  std::map<int32_t, double> kept;
  double held = 0.0;
  for (size_t i = 0; i < order.size() && (s.top_p == 1.0F || held < mass); ++i) {
    // A weight below e^-87 is 0 in float32.
    if (weights[i] < std::max(static_cast<double>(s.min_p), std::exp(-87.0))) break;
    kept[order[i]] = weights[i];
    held += weights[i];
  }
  for (auto& [token, weight] : kept) weight /= held;
  return kept;
}

}  // namespace

TEST_CASE("Philox gives the published known answers") {
  using Words = std::array<uint32_t, 4>;
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
        Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  CHECK(philox_uniform(1, 2) != philox_uniform(2, 1));
  for (uint64_t i = 0; i < 1000; ++i) {
    CHECK(philox_uniform(7, i) >= 0.0);
    CHECK(philox_uniform(7, i) < 1.0);
  }
}

TEST_CASE("exp_nonpositive follows exp") {
  for (float x = 0.0F; x > -87.0F; x -= 0.0137F) {
    CHECK(exp_nonpositive(x) == doctest::Approx(std::exp(static_cast<double>(x))).epsilon(3e-7));
  }
  CHECK(exp_nonpositive(0.0F) == 1.0F);
  CHECK(exp_nonpositive(-88.0F) == 0.0F);
  CHECK(exp_nonpositive(-kInfinity) == 0.0F);
}

TEST_CASE("blocked logits: maximum, argmax, top and sum at every tail length") {
  for (const size_t count : {1U, 2U, 15U, 16U, 17U, 63U, 64U, 65U, 127U, 1000U, 5000U}) {
    auto logits = random_logits(count, static_cast<unsigned>(count));
    if (count > 20) logits[18] = logits[19];
    BlockedLogits blocked;
    blocked.assign(logits.data(), static_cast<int64_t>(count));
    const auto best = std::max_element(logits.begin(), logits.end());
    CHECK(blocked.maximum() == *best);
    CHECK(blocked.argmax() == best - logits.begin());

    std::vector<Candidate> ranking;
    for (size_t i = 0; i < count; ++i) ranking.push_back({logits[i], static_cast<int32_t>(i)});
    std::sort(ranking.begin(), ranking.end(), ranks_before);
    std::vector<Candidate> top;
    for (const size_t k : {size_t{1}, size_t{3}, size_t{20}, size_t{70}, count, count + 5}) {
      blocked.top(static_cast<int64_t>(k), top);
      REQUIRE(top.size() == std::min(k, count));
      for (size_t i = 0; i < top.size(); ++i) CHECK(top[i].token == ranking[i].token);
    }

    double sum = 0.0;
    for (const float logit : logits) sum += std::exp((static_cast<double>(logit) - *best) * 0.7);
    CHECK(blocked.sum_exp(0.7F) == doctest::Approx(sum).epsilon(1e-6));
    auto weights = logits;
    CHECK(exp_in_place(weights.data(), static_cast<int64_t>(count), *best, 0.7F) == blocked.sum_exp(0.7F));
  }
}

TEST_CASE("equal logits: the lower token first") {
  const std::vector<float> logits(300, 1.5F);
  BlockedLogits blocked;
  blocked.assign(logits.data(), 300);
  CHECK(blocked.argmax() == 0);
  std::vector<Candidate> top;
  blocked.top(3, top);
  REQUIRE(top.size() == 3);
  for (int32_t i = 0; i < 3; ++i) CHECK(top[static_cast<size_t>(i)].token == i);
}

TEST_CASE("the history's window forgets the oldest token") {
  TokenHistory history(3);
  for (const int32_t token : {5, 5, 6}) history.add(token, false);
  history.add(7, true);  // the window is now 5 6 7
  std::map<int32_t, std::pair<int32_t, int32_t>> seen;
  for (const auto& entry : history.entries()) seen[entry.token] = {entry.occurrences, entry.generated};
  CHECK(seen == std::map<int32_t, std::pair<int32_t, int32_t>>{{5, {1, 0}}, {6, {1, 0}}, {7, {1, 1}}});
  history.add(7, true);  // 6 7 7
  seen.clear();
  for (const auto& entry : history.entries()) seen[entry.token] = {entry.occurrences, entry.generated};
  CHECK(seen == std::map<int32_t, std::pair<int32_t, int32_t>>{{6, {1, 0}}, {7, {2, 2}}});
}

TEST_CASE("the distribution is the reference's, whatever the settings") {
  std::mt19937 generator(3);
  const auto pick = [&](std::vector<float> values) { return values[generator() % values.size()]; };
  for (int round = 0; round < 400; ++round) {
    const size_t count = 1 + generator() % 3000;
    const auto logits = random_logits(count, generator(), pick({0.01F, 1.0F, 4.0F}));
    SamplingSettings settings;
    settings.temperature = pick({0.1F, 0.7F, 1.0F, 2.5F});
    settings.top_k = static_cast<int64_t>(pick({0.0F, 1.0F, 20.0F, 100.0F, 5000.0F}));
    settings.top_p = pick({1.0F, 0.999F, 0.8F, 0.05F});
    settings.min_p = pick({0.0F, 0.05F, 0.9F});
    settings.repetition_penalty = pick({1.0F, 1.3F, 0.8F});
    settings.presence_penalty = pick({0.0F, 0.6F, -0.4F});
    settings.frequency_penalty = pick({0.0F, 0.3F, -0.2F});
    if (generator() % 2 == 0) {
      settings.logit_bias = {{static_cast<int32_t>(generator() % count), 4.0F},
                             {static_cast<int32_t>(generator() % count), -6.0F}};
    }
    std::vector<int32_t> prompt;
    std::vector<int32_t> generated;
    for (int i = 0; i < 20; ++i) prompt.push_back(static_cast<int32_t>(generator() % count));
    for (int i = 0; i < 20; ++i) generated.push_back(static_cast<int32_t>(generator() % count));
    Sampler sampler(static_cast<int64_t>(count), settings);
    sampler.add_prompt(prompt);
    for (const int32_t token : generated) sampler.accept(token);

    const auto expected = reference(logits, settings, prompt, generated);
    const auto got = sampler.distribution(logits);
    // Float rounding may move the border of a cut by tokens of vanishing or equal weight.
    double difference = 0.0;
    std::map<int32_t, double> rest = expected;
    for (const auto& [token, probability] : got) {
      difference += std::abs(probability - (rest.contains(token) ? rest[token] : 0.0));
      rest.erase(token);
    }
    for (const auto& [token, probability] : rest) difference += probability;
    CAPTURE(round);
    CAPTURE(count);
    CHECK(difference < 2e-3);
    CHECK(std::abs(static_cast<double>(got.size()) - static_cast<double>(expected.size())) <=
          1.0 + 0.01 * static_cast<double>(expected.size()));
    const int32_t drawn = sampler.sample(logits);
    CHECK(std::any_of(got.begin(), got.end(), [&](const auto& kept) { return kept.first == drawn; }));
  }
}

TEST_CASE("draws are spread as the distribution says") {
  const auto logits = random_logits(12, 5, 1.0F);
  for (const int64_t top_k : {0, 6}) {
    SamplingSettings settings;
    settings.top_k = top_k;
    settings.seed = 11;
    Sampler sampler(12, settings);
    std::map<int32_t, int> counts;
    constexpr int kDraws = 20000;
    for (int i = 0; i < kDraws; ++i) {
      const int32_t token = sampler.sample(logits);
      ++counts[token];
      sampler.accept(token);
    }
    double chi_square = 0.0;
    const auto expected = sampler.distribution(logits);
    for (const auto& [token, probability] : expected) {
      const double mean = probability * kDraws;
      chi_square += (counts[token] - mean) * (counts[token] - mean) / mean;
    }
    // 99.9 % points of chi-square with 11 and 5 degrees of freedom.
    CHECK(chi_square < (top_k == 0 ? 31.26 : 20.52));
  }
}

TEST_CASE("greedy takes the best allowed token; padding rows are never chosen") {
  std::vector<float> logits(100, 0.0F);
  logits[40] = 3.0F;
  logits[70] = 2.0F;
  logits[99] = 50.0F;
  SamplingSettings settings;
  settings.temperature = 0.0F;
  CHECK(Sampler(99, settings).sample(logits) == 40);
  CHECK(Sampler(100, settings).sample(logits) == 99);
  std::vector<uint32_t> allowed(4, 0);
  allowed[70 / 32] = 1U << (70 % 32);
  CHECK(Sampler(99, settings).sample(logits, allowed) == 70);
  settings.logit_bias = {{40, -kInfinity}};
  CHECK(Sampler(99, settings).sample(logits) == 70);
}

TEST_CASE("a draw under a mask stays inside it") {
  const auto logits = random_logits(1000, 9, 0.5F);
  std::vector<uint32_t> allowed(32, 0);
  for (const int32_t token : {3, 64, 500, 999})
    allowed[static_cast<size_t>(token / 32)] |= 1U << (token % 32);
  allowed[7] = ~0U;  // tokens 224 to 255
  for (const float top_p : {1.0F, 0.9F}) {
    SamplingSettings settings;
    settings.top_p = top_p;
    Sampler sampler(1000, settings);
    for (int i = 0; i < 500; ++i) {
      const int32_t token = sampler.sample(logits, allowed);
      CHECK(((allowed[static_cast<size_t>(token / 32)] >> (token % 32)) & 1U) == 1U);
      sampler.accept(token);
    }
  }
}

TEST_CASE("what cannot be sampled is an error") {
  std::vector<float> logits(64, 0.0F);
  const std::vector<uint32_t> nothing(2, 0);
  const Sampler sampler(64, {});
  CHECK_THROWS_AS(sampler.sample(logits, nothing), Error);
  CHECK_THROWS_AS(sampler.sample(std::vector<float>(63, 0.0F)), Error);
  CHECK_THROWS_AS(sampler.sample(logits, std::vector<uint32_t>(1, ~0U)), Error);
  logits[63] = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(sampler.sample(logits), Error);
  logits[63] = kInfinity;
  CHECK_THROWS_AS(sampler.sample(logits), Error);

  const auto bad = [](auto change) {
    SamplingSettings settings;
    change(settings);
    CHECK_THROWS_AS(Sampler(64, settings), Error);
  };
  bad([](SamplingSettings& s) { s.temperature = -1.0F; });
  bad([](SamplingSettings& s) { s.top_p = 0.0F; });
  bad([](SamplingSettings& s) { s.min_p = 1.5F; });
  bad([](SamplingSettings& s) { s.top_k = -1; });
  bad([](SamplingSettings& s) { s.repetition_penalty = 0.0F; });
  bad([](SamplingSettings& s) { s.penalty_window = -1; });
  bad([](SamplingSettings& s) { s.logit_bias = {{64, 1.0F}}; });
  bad([](SamplingSettings& s) { s.logit_bias = {{1, kInfinity}}; });
  Sampler accepting(64, {});
  CHECK_THROWS_AS(accepting.accept(64), Error);
}

TEST_CASE("log-probabilities are those of the unmodified softmax") {
  const auto logits = random_logits(5000, 21);
  const double best = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - best);
  const auto result = token_logprobs(logits, 17, 5);
  CHECK(static_cast<double>(result.logprob) ==
        doctest::Approx(logits[17] - best - std::log(sum)).epsilon(1e-6));
  REQUIRE(result.top.size() == 5);
  for (size_t i = 0; i < 5; ++i) {
    const float logit = logits[static_cast<size_t>(result.top[i].token)];
    CHECK(static_cast<double>(result.top[i].logit) ==
          doctest::Approx(logit - best - std::log(sum)).epsilon(1e-6));
    if (i > 0) CHECK(result.top[i - 1].logit >= result.top[i].logit);
  }
  CHECK(token_logprobs(logits, 17, 0).top.empty());
}
