// Weights that are not numbers are found when a model is loaded, not when it answers nonsense.
#pragma once

#include "gguf/tensor.h"
#include "threads/pool.h"

namespace bitqwen {

/// Whether all scales (of block types) or values (of float types) are finite.
bool all_finite(const gguf::TensorView& tensor, ThreadPool& pool);

/// Throws Error(kFormat) unless it is one: what is no number makes all that follow meaningless.
void require_number(float logit);

}  // namespace bitqwen
