// One row's encoder; compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "gguf/types.h"
#include "quant/encode.h"

namespace bitqwen {

struct RowTask {
  const float* values;      // [cols]
  const float* importance;  // [cols] or nullptr
  int64_t cols;
  float matrix_scale;  // of the whole matrix, for Fit::kAbsmean
  float* weights;      // [cols], scratch
  uint8_t* out;
};

using RowEncoder = void (*)(gguf::TensorType type, Fit fit, const RowTask& row);

}  // namespace bitqwen
