// Rotated matrices: a file keeps them times an orthogonal matrix, and their inputs are multiplied by it too.
//
// Each 128 columns take signs, which the file has in a tensor, and are then Hadamard-transformed, divided by
// sqrt(128). Products stay what they were, and no column stands out any more. docs/file-format.md.
#pragma once

#include <cstdint>
#include <string_view>

namespace bitqwen::gguf {

constexpr int64_t kRotationBlock = 128;
/// Metadata: an array of the rotated tensors' names.
constexpr std::string_view kRotatedKey = "bitqwen.rotated";
/// The tensor of signs, I8 [the widest rotated matrix's columns], 1 or -1; narrower ones take the first.
constexpr std::string_view kSignsTensor = "rotation.signs";

}  // namespace bitqwen::gguf
