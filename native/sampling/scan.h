// The passes over a whole vocabulary's logits (150,000 floats). Each is a loop over fixed lanes that a
// compiler turns into SIMD at any baseline without reordering a sum behind our back: the same bits on
// every CPU.
#pragma once

#include <cstdint>
#include <vector>

namespace bitqwen {

struct Candidate {
  float logit;
  int32_t token;
};

/// By falling logit; equal logits by rising token.
inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

/// Logits and the maximum of each block of kBlock: most later passes look at few blocks.
/// The view does not own `logits`.
class BlockedLogits {
 public:
  static constexpr int64_t kBlock = 64;

  /// logits: [count]. NaN is an Error(kFormat).
  void assign(const float* logits, int64_t count);

  float maximum() const { return maximum_; }
  int64_t count() const { return count_; }
  /// The lowest token among those with the maximum.
  int32_t argmax() const;
  /// Appends every token with logit >= threshold, by rising token.
  void gather(float threshold, std::vector<Candidate>& out) const;
  /// A threshold that at least `k` tokens reach and few more: a lower bound of the k-th largest logit.
  float threshold_for(int64_t k);
  /// The k best (fewer when there are fewer above -inf), ranked.
  void top(int64_t k, std::vector<Candidate>& out);
  /// Sum over tokens of exp((logit - maximum) * scale).
  double sum_exp(float scale) const;

 private:
  const float* logits_ = nullptr;
  int64_t count_ = 0;
  float maximum_ = 0.0F;
  std::vector<float> block_maxima_;  // [ceil(count / kBlock)]
  std::vector<float> selection_;     // scratch of threshold_for
};

/// exp(x) for x <= 0 to within 2 ulp; 0 below -87. Written out, because a libm's exp differs between systems.
float exp_nonpositive(float x);

/// values[i] = exp((values[i] - maximum) * scale); returns the sum. values: [count]
double exp_in_place(float* values, int64_t count, float maximum, float scale);

}  // namespace bitqwen
