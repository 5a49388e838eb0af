// From a tensor's plain rows to the interleaved row blocks of weights/format.h.
#pragma once

#include <cstdint>

#include "gguf/types.h"
#include "weights/format.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

struct Repacker {
  Format format = Format::kF32;
  /// Packs `units` units of `rows` (1 to 16) consecutive rows of `row_bytes` each, from `source` on; target:
  /// as many units of one row block.
  /// Rows that are missing keep the zeros of the target. False: the format cannot hold one of the codes.
  bool (*pack_block)(const uint8_t* source, int64_t row_bytes, int rows, int64_t units,
                     uint8_t* block) = nullptr;
};

/// pack_block is nullptr for a type without kernels.
Repacker find_repacker(gguf::TensorType type, TernaryLayout ternary);

}  // namespace bitqwen
