// What each tensor type's bytes mean: the scalar definition that everything else is tested against.
#pragma once

#include <cstdint>

#include "gguf/types.h"

namespace bitqwen::gguf {

/// Writes `count` float32 values from blocks at `bytes`; `count` is a multiple of the block size.
/// `codebook`: [entries][dims], for types that have one.
void dequantize(TensorType type, const uint8_t* bytes, int64_t count, float* out,
                const int8_t* codebook = nullptr);

}  // namespace bitqwen::gguf
