#include "model/finite.h"

#include <array>
#include <atomic>
#include <cmath>

#include "errors.h"
#include "half.h"

namespace bitqwen {
namespace {

// Where a block's f16 scales lie; -1: none.
std::array<int, 2> scale_offsets(gguf::TensorType type) {
  using gguf::TensorType;
  switch (type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: return {0, 2};
    case TensorType::kQ2_K: return {80, 82};
    case TensorType::kQ3_K: return {108, -1};
    case TensorType::kQ6_K: return {208, -1};
    case TensorType::kTQ1_0: return {52, -1};
    case TensorType::kTQ2_0: return {64, -1};
    default: return {0, -1};
  }
}

bool finite_half(uint16_t bits) { return (bits & 0x7c00) != 0x7c00; }
bool finite_upper(uint16_t bits) { return (bits & 0x7f80) != 0x7f80; }  // bfloat16, or float32's upper half

bool finite_blocks(gguf::TensorType type, const uint8_t* p, int64_t blocks, int block_bytes) {
  const std::array<int, 2> offsets = scale_offsets(type);
  for (int64_t i = 0; i < blocks; ++i, p += block_bytes) {
    if (type == gguf::TensorType::kI8) {
      return true;
    } else if (type == gguf::TensorType::kF32) {
      if (!finite_upper(load_u16(p + 2))) return false;
    } else if (type == gguf::TensorType::kBF16) {
      if (!finite_upper(load_u16(p))) return false;
    } else {
      if (!finite_half(load_u16(p + offsets[0]))) return false;
      if (offsets[1] >= 0 && !finite_half(load_u16(p + offsets[1]))) return false;
    }
  }
  return true;
}

}  // namespace

bool all_finite(const gguf::TensorView& tensor, ThreadPool& pool) {
  const gguf::TypeInfo& info = gguf::type_info(tensor.type);
  const int64_t blocks = static_cast<int64_t>(tensor.bytes.size()) / info.block_bytes;
  std::atomic<bool> finite{true};
  pool.parallel_for(blocks, 1 << 15, [&](int64_t begin, int64_t end, int) {
    const uint8_t* p = tensor.bytes.data() + begin * info.block_bytes;
    if (!finite_blocks(tensor.type, p, end - begin, static_cast<int>(info.block_bytes))) finite = false;
  });
  return finite;
}

void require_number(float logit) {
  if (std::isfinite(logit)) return;
  throw Error(ErrorKind::kFormat, "the model's output is not a number",
              "The file's weights are damaged, or overflow: convert the original checkpoint again.");
}

}  // namespace bitqwen
