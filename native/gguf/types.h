// GGUF tensor types: ids, block sizes, names. Ids are the mainline's, or far from them, and never change.
#pragma once

#include <cstdint>
#include <string_view>

namespace bitqwen::gguf {

enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kQ2_0 = 42,
  kI8 = 24,  // codebooks only: no matrix
  // Our own: vectors of weights from a codebook (docs/file-format.md). 20000 + 100 * bits of a weight.
  kV2 = 20200,
  kV2_5 = 20250,
  kV3 = 20300,
};

/// The points that a matrix's vectors of weights are taken from. A sibling tensor holds them, int8
/// [entries][dims]; a mirrored codebook stores one of each two opposite points, and the code's highest
/// bit asks for the other one.
struct CodebookShape {
  uint32_t entries = 0;  // 0: the type has no codebook
  uint32_t dims = 0;     // weights in a vector
  bool mirrored = false;
};

struct TypeInfo {
  TensorType type;
  std::string_view name;  // as in the GGUF specification: "Q4_K"
  uint32_t block_size;    // values in a block
  uint32_t block_bytes;   // bytes of a block
  CodebookShape codebook = {};
};

/// The type's layout, or nullptr for an id that this build does not read.
const TypeInfo* find_type(uint32_t id);
/// The layout of a known type.
const TypeInfo& type_info(TensorType type);
/// A readable name for any id, known or not, for messages: "MXFP4 (39)", "type 99".
std::string_view known_type_name(uint32_t id);

}  // namespace bitqwen::gguf
