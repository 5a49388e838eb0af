// A view of one tensor's bytes in plain row order, wherever they live.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "gguf/types.h"

namespace bitqwen::gguf {

struct TensorView {
  std::string name;
  TensorType type = TensorType::kF32;
  int64_t rows = 1;                       // all dimensions but the innermost, multiplied
  int64_t cols = 0;                       // the innermost dimension; a multiple of the type's block size
  std::span<const uint8_t> bytes;         // rows * cols / block_size * block_bytes
  std::span<const int8_t> codebook = {};  // [entries][dims], checked; empty for types without one
  std::span<const int8_t> signs = {};     // [cols] 1 or -1, checked, of a rotated matrix; empty for others

  int64_t row_bytes() const {
    const TypeInfo& info = type_info(type);
    return cols / info.block_size * info.block_bytes;
  }
  const uint8_t* row(int64_t r) const { return bytes.data() + r * row_bytes(); }
};

}  // namespace bitqwen::gguf
