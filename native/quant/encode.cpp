#include "quant/encode.h"

#include <cmath>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf/dequantize.h"
#include "kernels/isa.h"
#include "quant/row_encoder.h"

namespace bitqwen {
namespace {

RowEncoder current_encoder() {
  switch (current_isa()) {
#if defined(BITQWEN_QUANT_X86)
    case Isa::kAvx2:
    case Isa::kAvxVnni: return encode_row_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni: return encode_row_avx512;
#endif
    default: return encode_row_baseline;
  }
}

// Row sums first, then their sum in order: the same for every number of threads.
float mean_absolute(const float* matrix, int64_t rows, int64_t cols, ThreadPool& pool) {
  std::vector<double> sums(static_cast<size_t>(rows));
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < cols; ++i) sums[r] += std::fabs(matrix[r * cols + i]);
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return static_cast<float>(total / (static_cast<double>(rows) * static_cast<double>(cols)));
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
    case TensorType::kQ4_K:
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
  if (cols < 1 || cols % info.block_size != 0 || (!importance.empty() && std::ssize(importance) != cols)) {
    throw Error(ErrorKind::kArgument, "rows of " + std::to_string(cols) + " values do not fit " +
                                          std::string(info.name) + " blocks of " +
                                          std::to_string(info.block_size) + ", or the importances given");
  }
  const float scale = fit == Fit::kAbsmean ? mean_absolute(matrix, rows, cols, pool) : 0.0f;
  const int64_t row_bytes = cols / info.block_size * info.block_bytes;
  const RowEncoder encode_row = current_encoder();
  std::vector<EncodeResult> results(static_cast<size_t>(rows));
  pool.parallel_for(rows, 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scratch(static_cast<size_t>(cols));
    for (int64_t r = begin; r < end; ++r) {
      const float* values = matrix + r * cols;
      uint8_t* bytes = out + r * row_bytes;
      encode_row(
          type, fit,
          {values, importance.empty() ? nullptr : importance.data(), cols, scale, scratch.data(), bytes});
      gguf::dequantize(type, bytes, cols, scratch.data());
      for (int64_t i = 0; i < cols; ++i) {
        const double difference = static_cast<double>(values[i]) - scratch[i];
        results[r].error += difference * difference;
        results[r].energy += static_cast<double>(values[i]) * values[i];
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
