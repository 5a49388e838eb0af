// Codebooks of the types that take vectors of weights from one: docs/file-format.md.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "gguf/types.h"

namespace bitqwen::gguf {

// A mirrored codebook's points are odd, so that a sign flips by inverting bits (63 - u for u = (p + 63) / 2).
inline constexpr int kLargestMirrored = 63;
inline constexpr int kLeastFree = -32, kLargestFree = 31;

/// The tensor that holds `tensor`'s codebook: "blk.0.ffn_gate.codebook" for "blk.0.ffn_gate.weight".
std::string codebook_name(std::string_view tensor);

/// Throws Error(kFormat), naming `tensor`, unless `points` ([entries][dims]) may be a codebook of the type.
void check_codebook(const TypeInfo& type, std::span<const int8_t> points, const std::string& tensor);

/// Coordinate `dim` of the point that a code stands for; the code is in range.
inline int codebook_value(const CodebookShape& shape, const int8_t* points, uint32_t code, uint32_t dim) {
  const int value = points[code % shape.entries * shape.dims + dim];
  return code < shape.entries ? value : -value;
}

}  // namespace bitqwen::gguf
