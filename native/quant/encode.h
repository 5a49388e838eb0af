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
  kAbsmean,  // one scale for the whole matrix, its mean absolute value (BitNet b1.58, arXiv 2402.17764);
             // a matrix that has only the values -s, 0 and s keeps its s
  kTernary,  // kMse with the codes -1, 0 and 1 only
};

struct EncodeResult {
  double energy = 0;  // sum of squares; not finite if a value is not
  double error = 0;   // sum of squared differences; not finite if a value lies beyond the type's range
};

/// Encodes matrix: [rows][cols] into out: rows * cols / block_size * block_bytes bytes. importance:
/// [cols], how much each column's error weighs, or empty. cols is a multiple of the type's block.
/// Bytes of a row that cannot be held (see EncodeResult) are not defined.
/// Throws Error(kUnsupported) for a type or fit without an encoder, Error(kArgument) for sizes that do not
/// fit and for importances that are negative or not finite.
EncodeResult encode(gguf::TensorType type, Fit fit, const float* matrix, int64_t rows, int64_t cols,
                    std::span<const float> importance, uint8_t* out, ThreadPool& pool);

/// Whether encode() knows the pair.
bool can_encode(gguf::TensorType type, Fit fit);

}  // namespace bitqwen
