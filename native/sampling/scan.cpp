#include "sampling/scan.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "errors.h"

namespace bitqwen {

namespace {

constexpr int kLanes = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

inline float larger(float a, float b) { return a > b ? a : b; }

inline float exp_lane(float x) {
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the integer n and leaves n in the
  // low mantissa bits.
  constexpr float kRound = 12582912.0F;
  constexpr float kLowest = -87.0F;
  const float clamped = x > kLowest ? x : kLowest;
  const float rounded = clamped * 1.44269504F + kRound;
  const float n = rounded - kRound;
  const float r = (clamped - n * 0.693359375F) - n * -2.12194440e-4F;
  // Cephes' minimax polynomial of (exp(r) - 1 - r) / r^2.
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float value = p * r * r + r + 1.0F;
  const auto exponent = (std::bit_cast<uint32_t>(rounded) - std::bit_cast<uint32_t>(kRound)) << 23;
  const float result = std::bit_cast<float>(std::bit_cast<uint32_t>(value) + exponent);
  return x > kLowest ? result : 0.0F;
}

// Sum of f(values[i]) over a block small enough for float lanes to stay exact to 1e-7.
constexpr int64_t kSumBlock = 1024;

template <typename Visit>
double sum_blocks(int64_t count, const Visit& visit) {
  double total = 0.0;
  for (int64_t start = 0; start < count; start += kSumBlock) {
    const int64_t end = std::min(count, start + kSumBlock);
    float lanes[kLanes] = {};
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += visit(i + lane);
    }
    for (int lane = 0; i < end; ++i, ++lane) lanes[lane] += visit(i);
    for (const float lane : lanes) total += static_cast<double>(lane);
  }
  return total;
}

}  // namespace

void BlockedLogits::assign(const float* logits, int64_t count) {
  logits_ = logits;
  count_ = count;
  block_maxima_.resize(static_cast<size_t>((count + kBlock - 1) / kBlock));
  maximum_ = kMinusInfinity;
  uint32_t unordered[kLanes] = {};
  for (size_t block = 0; block < block_maxima_.size(); ++block) {
    const int64_t start = static_cast<int64_t>(block) * kBlock;
    const int64_t end = std::min(count, start + kBlock);
    float lanes[kLanes];
    std::fill(std::begin(lanes), std::end(lanes), kMinusInfinity);
    int64_t i = start;
    for (; i + kLanes <= end; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const float value = logits[i + lane];
        lanes[lane] = larger(value, lanes[lane]);
        unordered[lane] |= value != value ? 1U : 0U;
      }
    }
    for (int lane = 0; i < end; ++i, ++lane) {
      lanes[lane] = larger(logits[i], lanes[lane]);
      unordered[lane] |= logits[i] != logits[i] ? 1U : 0U;
    }
    float maximum = lanes[0];
    for (const float lane : lanes) maximum = larger(lane, maximum);
    block_maxima_[block] = maximum;
    maximum_ = larger(maximum, maximum_);
  }
  if (std::any_of(std::begin(unordered), std::end(unordered), [](uint32_t flag) { return flag != 0; }) ||
      maximum_ == std::numeric_limits<float>::infinity()) {
    throw Error(
        ErrorKind::kFormat, "the model's logits are not finite numbers",
        "The weights hold NaN or infinity, or overflow: check the file with `bitqwen inspect` and convert "
        "the model again.");
  }
}

int32_t BlockedLogits::argmax() const {
  const auto block = std::find(block_maxima_.begin(), block_maxima_.end(), maximum_) - block_maxima_.begin();
  const float* first = logits_ + block * kBlock;
  return static_cast<int32_t>(std::find(first, logits_ + count_, maximum_) - logits_);
}

void BlockedLogits::gather(float threshold, std::vector<Candidate>& out) const {
  for (size_t block = 0; block < block_maxima_.size(); ++block) {
    if (!(block_maxima_[block] >= threshold)) continue;
    const int64_t start = static_cast<int64_t>(block) * kBlock;
    const int64_t end = std::min(count_, start + kBlock);
    for (int64_t i = start; i < end; ++i) {
      if (logits_[i] >= threshold && logits_[i] > kMinusInfinity)
        out.push_back({logits_[i], static_cast<int32_t>(i)});
    }
  }
}

float BlockedLogits::threshold_for(int64_t k) {
  // k blocks whose maxima are >= t hold at least k tokens >= t.
  if (k > static_cast<int64_t>(block_maxima_.size())) return kMinusInfinity;
  selection_ = block_maxima_;
  const auto kth = selection_.begin() + (k - 1);
  std::nth_element(selection_.begin(), kth, selection_.end(), std::greater<>());
  return *kth;
}

void BlockedLogits::top(int64_t k, std::vector<Candidate>& out) {
  out.clear();
  if (k <= 0) return;
  gather(threshold_for(k), out);
  if (static_cast<int64_t>(out.size()) > k) {
    std::nth_element(out.begin(), out.begin() + (k - 1), out.end(), ranks_before);
    out.resize(static_cast<size_t>(k));
  }
  std::sort(out.begin(), out.end(), ranks_before);
}

double BlockedLogits::sum_exp(float scale) const {
  const float* logits = logits_;
  const float maximum = maximum_;
  return sum_blocks(count_, [=](int64_t i) { return exp_lane((logits[i] - maximum) * scale); });
}

float exp_nonpositive(float x) { return exp_lane(x); }

double exp_in_place(float* values, int64_t count, float maximum, float scale) {
  return sum_blocks(count, [=](int64_t i) { return values[i] = exp_lane((values[i] - maximum) * scale); });
}

}  // namespace bitqwen
