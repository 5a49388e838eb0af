#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace bitqwen {
namespace {

// YaRN ("Efficient Context Window Extension of Large Language Models", arXiv 2309.00071): frequencies
// that turn often within the original context stay, slow ones are stretched by the factor, between
// them a linear ramp.
std::vector<double> frequencies(const Config& c) {
  const int half = c.head_dim / 2;
  std::vector<double> out(static_cast<size_t>(half));
  for (int i = 0; i < half; ++i) out[i] = std::pow(c.rope_theta, -2.0 * i / c.head_dim);
  if (c.rope_scaling == RopeScaling::kLinear) {
    for (double& frequency : out) frequency /= c.rope_factor;
  } else if (c.rope_scaling == RopeScaling::kYarn) {
    // The dimension that turns `rotations` times within the original context.
    const auto dimension = [&](double rotations) {
      return c.head_dim *
             std::log(static_cast<double>(c.rope_original_context) / (rotations * 2 * std::numbers::pi)) /
             (2 * std::log(c.rope_theta));
    };
    const double low = std::max(0.0, std::floor(dimension(c.rope_beta_fast)));
    double high = std::min(c.head_dim - 1.0, std::ceil(dimension(c.rope_beta_slow)));
    if (low == high) high += 0.001;
    for (int i = 0; i < half; ++i) {
      const double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
      out[i] = out[i] / c.rope_factor * stretched + out[i] * (1 - stretched);
    }
  }
  return out;
}

double attention_factor(const Config& c) {
  if (c.rope_scaling != RopeScaling::kYarn) return 1;
  if (c.rope_attention_factor > 0) return c.rope_attention_factor;
  return c.rope_factor > 1 ? 0.1 * std::log(c.rope_factor) + 1 : 1;
}

}  // namespace

RopeTable::RopeTable(const Config& config, int64_t positions, ThreadPool& pool)
    : half(config.head_dim / 2),
      cosines(static_cast<size_t>(positions * half)),
      sines(static_cast<size_t>(positions * half)) {
  const std::vector<double> frequency = frequencies(config);
  const double scale = attention_factor(config);
  pool.parallel_for(positions, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t p = begin; p < end; ++p) {
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<double>(p) * frequency[i];
        cosines[p * half + i] = static_cast<float>(std::cos(angle) * scale);
        sines[p * half + i] = static_cast<float>(std::sin(angle) * scale);
      }
    }
  });
}

}  // namespace bitqwen
