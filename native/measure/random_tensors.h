// Random tensors and activations from a fixed seed: for the tests of weights/ and kernels/, and the
// self-test.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gguf/dequantize.h"
#include "gguf/tensor.h"
#include "gguf/types.h"

namespace bitqwen::measure {

inline constexpr gguf::TensorType kAllTypes[] = {
    gguf::TensorType::kF32,  gguf::TensorType::kF16,  gguf::TensorType::kBF16,  gguf::TensorType::kQ8_0,
    gguf::TensorType::kQ4_0, gguf::TensorType::kQ4_1, gguf::TensorType::kQ5_0,  gguf::TensorType::kQ5_1,
    gguf::TensorType::kQ2_K, gguf::TensorType::kQ3_K, gguf::TensorType::kQ4_K,  gguf::TensorType::kQ5_K,
    gguf::TensorType::kQ6_K, gguf::TensorType::kQ2_0, gguf::TensorType::kTQ1_0, gguf::TensorType::kTQ2_0,
    gguf::TensorType::kV2,   gguf::TensorType::kV2_5, gguf::TensorType::kV3,
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 1) {}
  uint32_t bits() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1dull >> 32);
  }
  int below(int limit) { return static_cast<int>(bits() % static_cast<uint32_t>(limit)); }
  float uniform(float low, float high) {
    return low + (high - low) * static_cast<float>(bits() >> 8) * 0x1p-24f;
  }
  float normal() {
    float sum = 0;
    for (int i = 0; i < 12; ++i) sum += uniform(-0.5f, 0.5f);
    return sum;
  }

 private:
  uint64_t state_;
};

// A half of moderate size: sign and mantissa free, exponent 2^-8 to 2^-1.
inline uint16_t random_half(Random& random) {
  return static_cast<uint16_t>((random.bits() & 0x83ff) | (7 + random.below(7)) << 10);
}

struct Tensor {
  std::vector<uint8_t> bytes;
  std::vector<int8_t> codebook;  // empty for types without one
  gguf::TensorView view;

  std::vector<float> values() const {
    std::vector<float> out(view.rows * view.cols);
    gguf::dequantize(view.type, bytes.data(), view.rows * view.cols, out.data(), codebook.data());
    return out;
  }
};

/// Every code and sub-scale equally likely, block scales moderate.
inline Tensor random_tensor(gguf::TensorType type, int64_t rows, int64_t cols, Random& random) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  Tensor t;
  t.bytes.resize(rows * cols / info.block_size * info.block_bytes);
  t.view = {.name = "test", .type = type, .rows = rows, .cols = cols, .bytes = t.bytes};
  for (uint8_t& b : t.bytes) b = static_cast<uint8_t>(random.bits());
  std::vector<int> halves;  // where the block's f16 fields stand
  using gguf::TensorType;
  switch (type) {
    case TensorType::kF32:
      for (size_t i = 0; i < t.bytes.size(); i += 4) {
        const float value = random.normal();
        std::memcpy(&t.bytes[i], &value, 4);
      }
      break;
    case TensorType::kBF16:
      for (size_t i = 0; i < t.bytes.size(); i += 2) {
        const float value = random.normal();
        std::memcpy(&t.bytes[i], reinterpret_cast<const uint8_t*>(&value) + 2, 2);
      }
      break;
    case TensorType::kF16:
    case TensorType::kQ8_0:
    case TensorType::kQ4_0:
    case TensorType::kQ5_0:
    case TensorType::kQ2_0:
    case TensorType::kV2:
    case TensorType::kV2_5:
    case TensorType::kV3: halves = {0}; break;
    case TensorType::kI8: break;
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K: halves = {0, 2}; break;
    case TensorType::kQ2_K: halves = {80, 82}; break;
    case TensorType::kQ3_K: halves = {108}; break;
    case TensorType::kQ6_K: halves = {208}; break;
    case TensorType::kTQ1_0: halves = {52}; break;
    case TensorType::kTQ2_0: halves = {64}; break;
  }
  const gguf::CodebookShape& shape = info.codebook;
  for (uint32_t i = 0; i < shape.entries * shape.dims; ++i) {  // the extremes now and then
    const int value = random.below(4) == 0 ? 63 * random.below(2) : random.below(64);
    t.codebook.push_back(static_cast<int8_t>(shape.mirrored ? 2 * value - 63 : value - 32));
  }
  t.view.codebook = t.codebook;
  for (size_t block = 0; block < t.bytes.size(); block += info.block_bytes) {
    for (const int at : halves) {
      const uint16_t half = random_half(random);
      std::memcpy(&t.bytes[block + at], &half, 2);
    }
  }
  return t;
}

enum class Shape { kNormal, kExtreme, kZero, kSparse };

inline std::vector<float> random_activations(int64_t count, Shape shape, Random& random) {
  std::vector<float> x(count);
  for (float& v : x) {
    switch (shape) {
      case Shape::kNormal: v = random.normal() * (random.below(50) == 0 ? 40.0f : 1.0f); break;
      case Shape::kExtreme: v = random.below(2) ? 3.5f : -3.5f; break;  // codes are all +-127
      case Shape::kZero: v = 0.0f; break;
      case Shape::kSparse: v = random.below(100) == 0 ? random.normal() : 0.0f; break;
    }
  }
  return x;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace bitqwen::measure
