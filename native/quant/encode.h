// From float32 rows to a tensor type's blocks. The same bytes on every CPU and for every thread count.
#pragma once

#include <cstdint>
#include <span>

#include "gguf/types.h"
#include "threads/pool.h"

namespace bitqwen {

enum class Fit {
  kPlain,    // the type's reference rule: the largest value takes the largest code
  kMse,      // scales that minimise the weighted squared error
  kAbsmean,  // one scale for the whole matrix, its mean absolute value (BitNet b1.58, arXiv 2402.17764)
  kTernary,  // kMse with the codes -1, 0 and 1 only
};

struct EncodeResult {
  double error = 0;   // sum of squared differences
  double energy = 0;  // sum of squares
};

/// Encodes matrix: [rows][cols] into out: rows * cols / block_size * block_bytes bytes. importance:
/// [cols], how much each column's error weighs, or empty. cols is a multiple of the type's block.
/// Throws Error(kUnsupported) for a type or fit without an encoder.
EncodeResult encode(gguf::TensorType type, Fit fit, const float* matrix, int64_t rows, int64_t cols,
                    std::span<const float> importance, uint8_t* out, ThreadPool& pool);

/// Whether encode() knows the pair.
bool can_encode(gguf::TensorType type, Fit fit);

}  // namespace bitqwen
