// GGUF tensor types: ids, block sizes, names. Ids are the mainline's and never change.
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
};

struct TypeInfo {
  TensorType type;
  std::string_view name;  // as in the GGUF specification: "Q4_K"
  uint32_t block_size;    // values in a block
  uint32_t block_bytes;   // bytes of a block
};

/// The type's layout, or nullptr for an id that this build does not read.
const TypeInfo* find_type(uint32_t id);
/// The layout of a known type.
const TypeInfo& type_info(TensorType type);
/// A readable name for any id, known or not, for messages: "MXFP4 (39)", "type 99".
std::string_view known_type_name(uint32_t id);

}  // namespace bitqwen::gguf
