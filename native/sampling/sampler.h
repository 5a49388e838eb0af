// From logits to the next token.
//
// The order is that of Hugging Face's and vLLM's samplers, for which models publish their recommended
// settings: logit bias, repetition penalty, presence and frequency penalty, allowed tokens,
// temperature, top-k, top-p, min-p, draw. (llama.cpp applies the temperature last: with a temperature
// below 1 its top-p keeps more tokens than this one.)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "sampling/history.h"
#include "sampling/scan.h"

namespace bitqwen {

struct SamplingSettings {
  float temperature = 1.0F;  // 0: the best token always
  int64_t top_k = 0;         // keep the k best; 0: all
  float top_p = 1.0F;        // keep the fewest best tokens whose mass reaches top_p; 1: all
  float min_p = 0.0F;        // keep tokens with p >= min_p * p(best); 0: all
  float repetition_penalty =
      1.0F;  // a logit of a token seen in prompt or text: divided if > 0, else multiplied
  float presence_penalty = 0.0F;   // taken once from each token of the generated text
  float frequency_penalty = 0.0F;  // taken once for each occurrence in the generated text
  int64_t penalty_window = 0;      // penalties look at this many latest tokens; 0: all
  uint64_t seed = 0;
  std::vector<std::pair<int32_t, float>> logit_bias;  // added; -infinity forbids the token
};

/// Logits that a sampler looks at; it gives the same tokens if all others are -infinity.
struct NeededLogits {
  int64_t top = 0;               // the so many highest; 0: however many
  float margin = -1.0F;          // those at most so far below the highest; below 0: however far
  std::vector<int32_t> lowered;  // tokens that it may lower first: none of them counts as high
};

struct TokenLogprobs {
  float logprob;               // of the token asked for
  std::vector<Candidate> top;  // the best, ranked; `logit` holds the log-probability
};

/// One sequence's sampler. `sample` changes nothing: only `accept` moves on, so a caller may look at a
/// position, or several ahead, as often as it likes.
class Sampler {
 public:
  /// `vocab_size`: logits from here on are padding rows of the output matrix and are never chosen.
  /// Throws Error(kArgument) for a setting outside its range.
  Sampler(int64_t vocab_size, SamplingSettings settings);

  /// The prompt's tokens, for the repetition penalty.
  void add_prompt(std::span<const int32_t> tokens);
  /// The token that the sequence goes on with; the next draw uses the next random number.
  void accept(int32_t token);

  /// logits: [>= vocab_size], of the next position. allowed: empty, or bit t % 32 of word t / 32 set where
  /// token t may be chosen [ceil(vocab_size / 32)].
  int32_t sample(std::span<const float> logits, std::span<const uint32_t> allowed = {}) const;

  /// What `sample` draws from: the kept tokens, ranked unless nothing was cut, and their probabilities, which
  /// sum to 1.
  std::vector<std::pair<int32_t, double>> distribution(std::span<const float> logits,
                                                       std::span<const uint32_t> allowed = {}) const;

  /// What the next `sample` without a mask needs; nothing: all of them. Top-p alone needs all, because it
  /// divides by their sum, and so does whatever raises a logit.
  std::optional<NeededLogits> needed() const;

  int64_t vocab_size() const { return vocab_size_; }
  int64_t accepted() const { return accepted_; }
  const SamplingSettings& settings() const { return settings_; }

 private:
  struct Workspace;
  static Workspace& workspace();
  void prepare(std::span<const float> logits, std::span<const uint32_t> allowed, Workspace& space) const;
  bool cuts() const;
  void keep(Workspace& space) const;

  int64_t vocab_size_;
  SamplingSettings settings_;
  bool penalises_;
  TokenHistory history_;
  int64_t accepted_ = 0;
};

/// Log-probabilities under softmax(logits), before any penalty, bias, mask or temperature.
/// logits: [vocab_size]
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t token, int64_t top);

}  // namespace bitqwen
