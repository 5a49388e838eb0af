// Weights that are not numbers are found when a model is loaded, not when it answers nonsense.
#pragma once

#include "gguf/tensor.h"
#include "threads/pool.h"

namespace bitqwen {

/// Whether all scales (of block types) or values (of float types) are finite.
bool all_finite(const gguf::TensorView& tensor, ThreadPool& pool);

}  // namespace bitqwen
