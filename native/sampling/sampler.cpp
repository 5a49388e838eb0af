#include "sampling/sampler.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "errors.h"
#include "sampling/philox.h"

namespace bitqwen {

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
// A temperature this small gives every other token a weight of 0 in float32 anyway.
constexpr float kGreedyTemperature = 1e-5F;

[[noreturn]] void reject(const std::string& name, const std::string& given, const std::string& allowed) {
  throw Error(ErrorKind::kArgument, name + " is " + given + "; allowed: " + allowed);
}

template <typename Value>
void require(bool condition, const char* name, Value value, const char* allowed) {
  if (!condition) reject(name, std::to_string(value), allowed);
}

void check_token(int64_t token, int64_t vocab_size) {
  if (token < 0 || token >= vocab_size) {
    reject("token", std::to_string(token), "0 to " + std::to_string(vocab_size - 1));
  }
}

// Copies where the bit is set; -inf elsewhere.
void copy_allowed(const float* logits, std::span<const uint32_t> allowed, int64_t count, float* out) {
  constexpr auto kBits = [] {
    std::array<uint32_t, 32> bits{};
    for (size_t i = 0; i < 32; ++i) bits[i] = uint32_t{1} << i;
    return bits;
  }();
  int64_t start = 0;
  for (; start + 32 <= count; start += 32) {
    const uint32_t word = allowed[static_cast<size_t>(start / 32)];
    for (size_t i = 0; i < 32; ++i) {
      // Selecting bits, not branching, is what lets the compiler use SIMD.
      const uint32_t keep = (word & kBits[i]) != 0 ? ~uint32_t{0} : 0;
      const auto value = std::bit_cast<uint32_t>(logits[start + static_cast<int64_t>(i)]);
      out[start + static_cast<int64_t>(i)] =
          std::bit_cast<float>((value & keep) | (std::bit_cast<uint32_t>(kMinusInfinity) & ~keep));
    }
  }
  for (; start < count; ++start) {
    const uint32_t word = allowed[static_cast<size_t>(start / 32)];
    out[start] = (word & kBits[static_cast<size_t>(start % 32)]) != 0 ? logits[start] : kMinusInfinity;
  }
}

}  // namespace

// Scratch of a thread, not of a sampler: a server has many sequences and few threads.
struct Sampler::Workspace {
  std::vector<float> adjusted;  // [vocab_size]
  BlockedLogits blocked;        // over `adjusted`, or over the caller's logits when nothing adjusts them
  std::vector<Candidate> candidates;  // kept tokens
  std::vector<Candidate> ranking;     // partly ranked copy of them
  std::vector<float> weights;         // [candidates], exp((logit - maximum) / temperature)
  double total = 0.0;                 // sum of `weights`
};

Sampler::Workspace& Sampler::workspace() {
  thread_local Workspace space;
  return space;
}

Sampler::Sampler(int64_t vocab_size, SamplingSettings settings)
    : vocab_size_(vocab_size),
      settings_(std::move(settings)),
      penalises_(settings_.repetition_penalty != 1.0F || settings_.presence_penalty != 0.0F ||
                 settings_.frequency_penalty != 0.0F),
      history_(std::max<int64_t>(settings_.penalty_window, 0)) {
  const SamplingSettings& s = settings_;
  require(vocab_size > 0 && vocab_size <= std::numeric_limits<int32_t>::max(), "vocab_size", vocab_size,
          "1 to 2^31-1");
  require(s.temperature >= 0.0F && std::isfinite(s.temperature), "temperature", s.temperature, "0 or more");
  require(s.top_k >= 0, "top_k", s.top_k, "0 (off) or more");
  require(s.top_p > 0.0F && s.top_p <= 1.0F, "top_p", s.top_p, "above 0, to 1");
  require(s.min_p >= 0.0F && s.min_p <= 1.0F, "min_p", s.min_p, "0 to 1");
  require(s.repetition_penalty > 0.0F && std::isfinite(s.repetition_penalty), "repetition_penalty",
          s.repetition_penalty, "above 0");
  require(std::isfinite(s.presence_penalty), "presence_penalty", s.presence_penalty, "a finite number");
  require(std::isfinite(s.frequency_penalty), "frequency_penalty", s.frequency_penalty, "a finite number");
  require(s.penalty_window >= 0, "penalty_window", s.penalty_window, "0 (all) or more");
  for (const auto& [token, bias] : s.logit_bias) {
    check_token(token, vocab_size);
    require(std::isfinite(bias) || bias == kMinusInfinity, "logit_bias", bias, "a finite number or -inf");
  }
}

void Sampler::add_prompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) {
    check_token(token, std::numeric_limits<int32_t>::max());
    // A prompt may hold any id of the model, padding included; only those that can be chosen matter.
    if (penalises_ && token < vocab_size_) history_.add(token, false);
  }
}

void Sampler::accept(int32_t token) {
  check_token(token, vocab_size_);
  if (penalises_) history_.add(token, true);
  ++accepted_;
}

void Sampler::prepare(std::span<const float> logits, std::span<const uint32_t> allowed,
                      Workspace& space) const {
  const auto count = static_cast<size_t>(vocab_size_);
  if (logits.size() < count) {
    reject("the number of logits", std::to_string(logits.size()), std::to_string(count) + " or more");
  }
  if (!allowed.empty() && allowed.size() < (count + 31) / 32) {
    reject("the number of words of the allowed-token mask", std::to_string(allowed.size()),
           std::to_string((count + 31) / 32) + " or more");
  }
  if (allowed.empty() && !penalises_ && settings_.logit_bias.empty()) {
    space.blocked.assign(logits.data(), vocab_size_);
  } else {
    space.adjusted.resize(count);
    float* adjusted = space.adjusted.data();
    if (allowed.empty()) {
      std::copy_n(logits.data(), count, adjusted);
    } else {
      copy_allowed(logits.data(), allowed, vocab_size_, adjusted);
    }
    for (const auto& [token, bias] : settings_.logit_bias) adjusted[token] += bias;
    for (const TokenHistory::Entry& seen : history_.entries()) {
      float& logit = adjusted[seen.token];
      logit = logit > 0.0F ? logit / settings_.repetition_penalty : logit * settings_.repetition_penalty;
      if (seen.generated > 0) {
        logit -=
            settings_.presence_penalty + settings_.frequency_penalty * static_cast<float>(seen.generated);
      }
    }
    space.blocked.assign(adjusted, vocab_size_);
  }
  if (space.blocked.maximum() == kMinusInfinity) {
    throw Error(ErrorKind::kArgument,
                "no token may follow: every token is forbidden by the mask or the logit bias",
                "Loosen the grammar or the logit bias.");
  }
}

std::optional<NeededLogits> Sampler::needed() const {
  const SamplingSettings& s = settings_;
  if (s.repetition_penalty < 1.0F || s.presence_penalty < 0.0F || s.frequency_penalty < 0.0F) return {};
  NeededLogits needed;
  if (s.temperature < kGreedyTemperature) {
    needed.top = 1;
  } else if (s.top_k > 0 && s.top_k < vocab_size_) {
    needed.top = s.top_k;
  } else if (s.top_p < 1.0F || s.min_p <= 0.0F) {
    return {};
  }
  // Where top-p divides by the sum of the k best, all of these count, however improbable.
  if (s.temperature >= kGreedyTemperature && s.min_p > 0.0F && s.top_p == 1.0F) {
    needed.margin = s.temperature * (0.02F - std::log(s.min_p));
  }
  for (const auto& [token, bias] : s.logit_bias) {
    if (bias > 0.0F) return {};
    if (bias < 0.0F) needed.lowered.push_back(token);
  }
  for (const TokenHistory::Entry& seen : history_.entries()) needed.lowered.push_back(seen.token);
  return needed;
}

bool Sampler::cuts() const {
  return (settings_.top_k > 0 && settings_.top_k < vocab_size_) || settings_.top_p < 1.0F ||
         settings_.min_p > 0.0F;
}

// Each cut keeps a prefix of the ranking, so the three together keep the shortest of the prefixes.
void Sampler::keep(Workspace& space) const {
  const float scale = 1.0F / settings_.temperature;
  const float maximum = space.blocked.maximum();
  const auto weight = [=](const Candidate& candidate) {
    return exp_nonpositive((candidate.logit - maximum) * scale);
  };
  const auto weigh = [&](auto first, auto last) {
    double sum = 0.0;
    for (; first != last; ++first) sum += static_cast<double>(weight(*first));
    return sum;
  };
  // A little below the exact threshold; the exact test is on the weight.
  const float min_p_threshold = settings_.min_p > 0.0F
                                    ? maximum + settings_.temperature * (std::log(settings_.min_p) - 0.01F)
                                    : kMinusInfinity;
  std::vector<Candidate>& candidates = space.candidates;
  candidates.clear();

  double mass = 0.0;  // what top-p must reach
  if (settings_.top_k > 0 && settings_.top_k < vocab_size_) {
    space.blocked.top(settings_.top_k, candidates);
    mass = weigh(candidates.begin(), candidates.end()) * static_cast<double>(settings_.top_p);
  } else if (settings_.top_p < 1.0F) {
    mass = space.blocked.sum_exp(scale) * static_cast<double>(settings_.top_p);
    // Widen the net until what it holds reaches the mass: a peaked distribution takes one cheap cast.
    for (float depth = 8.0F;; depth *= 2.0F) {
      const bool all = depth > 87.0F;
      const float threshold = all ? kMinusInfinity : maximum - settings_.temperature * depth;
      candidates.clear();
      space.blocked.gather(std::max(threshold, min_p_threshold), candidates);
      if (all || threshold <= min_p_threshold || weigh(candidates.begin(), candidates.end()) >= mass) break;
    }
  } else {
    space.blocked.gather(min_p_threshold, candidates);
  }

  Candidate lowest{kMinusInfinity, 0};  // the last token that top-p keeps
  if (settings_.top_p < 1.0F) {
    // Halve towards it: ranking everything would cost ten times as much when the distribution is flat.
    space.ranking = candidates;
    auto first = space.ranking.begin();
    auto last = space.ranking.end();
    double held = 0.0;  // weight before `first`
    while (last - first > 32) {
      const auto middle = first + (last - first) / 2;
      std::nth_element(first, middle, last, ranks_before);
      const double upper = weigh(first, middle);
      if (held + upper >= mass) {
        last = middle;
      } else {
        held += upper;
        first = middle;
      }
    }
    std::sort(first, last, ranks_before);
    for (; first != last && held < mass; ++first) {
      held += static_cast<double>(weight(*first));
      lowest = *first;
    }
  }
  space.weights.clear();
  space.total = 0.0;
  std::erase_if(candidates, [&](const Candidate& candidate) {
    const float value = weight(candidate);
    if (value == 0.0F || value < settings_.min_p || ranks_before(lowest, candidate)) return true;
    space.weights.push_back(value);
    space.total += static_cast<double>(value);
    return false;
  });
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const uint32_t> allowed) const {
  Workspace& space = workspace();
  prepare(logits, allowed, space);
  if (settings_.temperature < kGreedyTemperature) return space.blocked.argmax();
  const double uniform = philox_uniform(settings_.seed, static_cast<uint64_t>(accepted_));
  if (cuts()) {
    keep(space);
    double left = uniform * space.total;
    for (size_t i = 0; i + 1 < space.weights.size(); ++i) {
      left -= static_cast<double>(space.weights[i]);
      if (left < 0.0) return space.candidates[i].token;
    }
    return space.candidates.back().token;
  }
  const float scale = 1.0F / settings_.temperature;
  const float maximum = space.blocked.maximum();
  space.adjusted.resize(static_cast<size_t>(vocab_size_));
  float* weights = space.adjusted.data();
  if (allowed.empty() && !penalises_ && settings_.logit_bias.empty())
    std::copy_n(logits.data(), vocab_size_, weights);
  double left = uniform * exp_in_place(weights, vocab_size_, maximum, scale);
  int64_t last = 0;  // rounding may leave a little at the end: then the last token with any weight
  for (int64_t i = 0; i < vocab_size_; ++i) {
    if (weights[i] == 0.0F) continue;
    last = i;
    left -= static_cast<double>(weights[i]);
    if (left < 0.0) break;
  }
  return static_cast<int32_t>(last);
}

std::vector<std::pair<int32_t, double>> Sampler::distribution(std::span<const float> logits,
                                                              std::span<const uint32_t> allowed) const {
  Workspace& space = workspace();
  prepare(logits, allowed, space);
  if (settings_.temperature < kGreedyTemperature) return {{space.blocked.argmax(), 1.0}};
  if (cuts()) {
    keep(space);
  } else {
    const float scale = 1.0F / settings_.temperature;
    space.candidates.clear();
    space.blocked.gather(kMinusInfinity, space.candidates);
    space.weights.clear();
    space.total = 0.0;
    for (const Candidate& candidate : space.candidates) {
      space.weights.push_back(exp_nonpositive((candidate.logit - space.blocked.maximum()) * scale));
      space.total += static_cast<double>(space.weights.back());
    }
  }
  std::vector<std::pair<int32_t, double>> out;
  out.reserve(space.candidates.size());
  for (size_t i = 0; i < space.candidates.size(); ++i) {
    out.emplace_back(space.candidates[i].token, static_cast<double>(space.weights[i]) / space.total);
  }
  std::stable_sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return out;
}

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int64_t top) {
  check_token(token, static_cast<int64_t>(logits.size()));
  thread_local BlockedLogits blocked;
  blocked.assign(logits.data(), static_cast<int64_t>(logits.size()));
  const double normaliser = static_cast<double>(blocked.maximum()) + std::log(blocked.sum_exp(1.0F));
  const auto logprob = [=](float logit) {
    return static_cast<float>(static_cast<double>(logit) - normaliser);
  };
  TokenLogprobs out{logprob(logits[static_cast<size_t>(token)]), {}};
  blocked.top(top, out.top);
  for (Candidate& candidate : out.top) candidate.logit = logprob(candidate.logit);
  return out;
}

}  // namespace bitqwen
