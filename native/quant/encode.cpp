#include "quant/encode.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf/dequantize.h"
#include "quant/importance.h"
#include "quant/inner_loops.h"

namespace bitqwen {
namespace {

constexpr int64_t kGrain = 8;  // rows

// Beyond this no type with float16 scales holds a value (Q6_K reaches furthest: 65504 x 128 x 32), and sums
// of the fits could overflow.
constexpr float kLargest = 3e8f;

struct RowFacts {
  double magnitudes = 0;  // sum of absolute values
  double energy = 0;      // sum of squares
  float largest = 0;      // absolute value
  float least = 0;        // absolute value other than zero, if there is one
};

RowFacts row_facts(const float* row, int64_t cols) {
  RowFacts facts;
  for (int64_t i = 0; i < cols; ++i) {
    const float magnitude = std::fabs(row[i]);
    facts.magnitudes += magnitude;
    facts.energy += static_cast<double>(magnitude) * magnitude;
    facts.largest = std::max(facts.largest, magnitude);
    if (magnitude > 0.0f && (facts.least == 0.0f || magnitude < facts.least)) facts.least = magnitude;
  }
  return facts;
}

// In the order of the rows, whichever thread has looked at them.
float absmean_scale(const std::vector<RowFacts>& rows, int64_t cols) {
  double total = 0;
  float largest = 0, least = 0;
  for (const RowFacts& row : rows) {
    total += row.magnitudes;
    largest = std::max(largest, row.largest);
    if (row.least > 0.0f && (least == 0.0f || row.least < least)) least = row.least;
  }
  if (largest == least) return largest;
  return static_cast<float>(total / (static_cast<double>(rows.size()) * static_cast<double>(cols)));
}

}  // namespace

bool can_encode(gguf::TensorType type, Fit fit) {
  using gguf::TensorType;
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
    case TensorType::kQ8_0: return fit == Fit::kPlain;
    case TensorType::kQ4_0: return fit == Fit::kPlain || fit == Fit::kMse;
    case TensorType::kQ2_K:
    case TensorType::kQ3_K:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
    case TensorType::kQ6_K: return fit == Fit::kMse;
    case TensorType::kQ2_0: return fit != Fit::kPlain;
    case TensorType::kTQ2_0: return fit == Fit::kTernary || fit == Fit::kAbsmean;
    default: return false;
  }
}

EncodeResult encode(gguf::TensorType type, Fit fit, const float* matrix, int64_t rows, int64_t cols,
                    std::span<const float> importance, uint8_t* out, ThreadPool& pool) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  if (!can_encode(type, fit)) {
    throw Error(ErrorKind::kUnsupported, "there is no encoder of that kind for " + std::string(info.name));
  }
  if (cols < 1 || cols % info.block_size != 0) {
    throw Error(ErrorKind::kArgument, "rows of " + std::to_string(cols) + " values do not fit " +
                                          std::string(info.name) + " blocks of " +
                                          std::to_string(info.block_size));
  }
  const std::vector<float> weights = normalised_importance(importance, cols);
  const int64_t row_bytes = cols / info.block_size * info.block_bytes;
  const RowEncoder encode_row = current_loops().encode_row;
  const bool float_type =
      type == gguf::TensorType::kF32 || type == gguf::TensorType::kF16 || type == gguf::TensorType::kBF16;
  std::vector<RowFacts> facts(static_cast<size_t>(rows));
  pool.parallel_for(rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) facts[r] = row_facts(matrix + r * cols, cols);
  });
  const float scale = fit == Fit::kAbsmean ? absmean_scale(facts, cols) : 0.0f;
  std::vector<EncodeResult> results(static_cast<size_t>(rows));
  pool.parallel_for(rows, kGrain, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(static_cast<size_t>(cols));
    for (int64_t r = begin; r < end; ++r) {
      const float* values = matrix + r * cols;
      results[r].energy = facts[r].energy;
      if (!std::isfinite(facts[r].energy) || (!float_type && facts[r].largest > kLargest)) {
        results[r].error = std::numeric_limits<double>::infinity();
        continue;
      }
      uint8_t* bytes = out + r * row_bytes;
      encode_row(type, fit,
                 {values, weights.empty() ? nullptr : weights.data(), cols, scale, scratch.data(), bytes});
      gguf::dequantize(type, bytes, cols, scratch.data());
      for (int64_t i = 0; i < cols; ++i) {
        const double difference = static_cast<double>(values[i]) - scratch[i];
        results[r].error += difference * difference;
      }
    }
  });
  EncodeResult total;
  for (const EncodeResult& row : results) {
    total.error += row.error;
    total.energy += row.energy;
  }
  return total;
}

}  // namespace bitqwen
