// Blocks written out by hand, and the same bits on every CPU. That the bits are the right ones for any
// block is tested from Python, against two other implementations.
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "doctest/doctest.h"
#include "gguf/dequantize.h"

using namespace bitqwen::gguf;

namespace {

constexpr std::array<uint8_t, 2> kOne = {0x00, 0x3c}, kTwo = {0x00, 0x40};  // as halves

std::vector<float> values(TensorType type, const std::vector<uint8_t>& bytes) {
  const TypeInfo& info = type_info(type);
  REQUIRE(bytes.size() % info.block_bytes == 0);
  std::vector<float> out(bytes.size() / info.block_bytes * info.block_size);
  dequantize(type, bytes.data(), static_cast<int64_t>(out.size()), out.data());
  return out;
}

std::vector<uint8_t> block(TensorType type) { return std::vector<uint8_t>(type_info(type).block_bytes); }

void put(std::vector<uint8_t>& bytes, size_t at, std::array<uint8_t, 2> half) {
  bytes[at] = half[0];
  bytes[at + 1] = half[1];
}

// FNV-1a over the values' bits; every NaN counts as the same.
uint64_t digest(const std::vector<float>& values) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const float value : values) {
    const uint32_t bits = std::isnan(value) ? 0x7fc00000 : std::bit_cast<uint32_t>(value);
    for (int i = 0; i < 4; ++i) hash = (hash ^ (bits >> (8 * i) & 255)) * 0x100000001b3;
  }
  return hash;
}

}  // namespace

TEST_CASE("Q4_0: low nibbles are the first half of the block") {
  auto bytes = block(TensorType::kQ4_0);
  put(bytes, 0, kTwo);
  for (int i = 0; i < 16; ++i) bytes[static_cast<size_t>(2 + i)] = static_cast<uint8_t>(i | (15 - i) << 4);
  const auto out = values(TensorType::kQ4_0, bytes);
  for (int i = 0; i < 16; ++i) {
    CHECK(out[static_cast<size_t>(i)] == 2.0f * static_cast<float>(i - 8));
    CHECK(out[static_cast<size_t>(16 + i)] == 2.0f * static_cast<float>(7 - i));
  }
}

TEST_CASE("Q2_0: four codes a byte, the first in the lowest bits; code 1 is zero") {
  auto bytes = block(TensorType::kQ2_0);
  put(bytes, 0, kTwo);
  for (size_t i = 2; i < 18; ++i) bytes[i] = 0b11100100;
  const auto out = values(TensorType::kQ2_0, bytes);
  for (size_t i = 0; i < 64; ++i) CHECK(out[i] == 2.0f * (static_cast<float>(i % 4) - 1.0f));
}

TEST_CASE("TQ2_0: a byte's four codes lie 32 values apart") {
  auto bytes = block(TensorType::kTQ2_0);
  put(bytes, 64, kOne);
  for (size_t i = 0; i < 64; ++i) bytes[i] = 0b10010010;  // 2, 0, 1, 2
  const auto out = values(TensorType::kTQ2_0, bytes);
  const std::array<float, 4> expected = {1, -1, 0, 1};
  for (size_t i = 0; i < 256; ++i) CHECK(out[i] == expected[i % 128 / 32]);
}

TEST_CASE("TQ1_0: five trits a byte") {
  auto bytes = block(TensorType::kTQ1_0);
  put(bytes, 52, kOne);
  // 2, 1, 0, 2, 1 in base 3 is 196 of 243: the byte is 196 * 256 / 243, rounded up.
  for (size_t i = 0; i < 48; ++i) bytes[i] = 207;
  const auto out = values(TensorType::kTQ1_0, bytes);
  const std::array<float, 5> expected = {1, 0, -1, 1, 0};
  for (size_t i = 0; i < 160; ++i) CHECK(out[i] == expected[i / 32]);
  for (size_t i = 160; i < 240; ++i) CHECK(out[i] == expected[(i - 160) / 16]);
  for (size_t i = 240; i < 256; ++i) CHECK(out[i] == -1.0f);
}

TEST_CASE("Q4_K: six-bit scales and minima of eight sub-blocks") {
  auto bytes = block(TensorType::kQ4_K);
  put(bytes, 0, kOne);
  put(bytes, 2, kTwo);
  // Scales 1, 2, 3, 4, 49, 34, 19, 20 and minima 5, 6, 7, 8, 21, 38, 55, 24: 4 to 7 keep their upper
  // bits in the upper bits of 0 to 3.
  const std::array<int, 8> scale = {1, 2, 3, 4, 49, 34, 19, 20}, minimum = {5, 6, 7, 8, 21, 38, 55, 24};
  for (size_t i = 0; i < 4; ++i) {
    bytes[4 + i] = static_cast<uint8_t>(scale[i] | scale[4 + i] >> 4 << 6);
    bytes[8 + i] = static_cast<uint8_t>(minimum[i] | minimum[4 + i] >> 4 << 6);
    bytes[12 + i] = static_cast<uint8_t>((scale[4 + i] & 15) | (minimum[4 + i] & 15) << 4);
  }
  for (size_t i = 16; i < 144; ++i) bytes[i] = 0xa3;
  const auto out = values(TensorType::kQ4_K, bytes);
  for (size_t i = 0; i < 256; ++i) {
    const int code = i / 32 % 2 ? 10 : 3;
    CHECK(out[i] == static_cast<float>(scale[i / 32] * code - 2 * minimum[i / 32]));
  }
}

TEST_CASE("arbitrary blocks give the same bits on every CPU") {
  struct Case {
    TensorType type;
    uint64_t digest;
  };
  const std::array<Case, 16> cases = {{
      {TensorType::kF32, 0xfb5c98e2be690afd},
      {TensorType::kF16, 0x996c0d5cabdc7009},
      {TensorType::kQ4_0, 0xfd348fc72322a56b},
      {TensorType::kQ4_1, 0x0eac66b4c2533eb4},
      {TensorType::kQ5_0, 0x68e07dfb535ed2b7},
      {TensorType::kQ5_1, 0xcb776a4a14c36cc4},
      {TensorType::kQ8_0, 0xabf66e0423229028},
      {TensorType::kQ2_K, 0x227a3699ed0397b3},
      {TensorType::kQ3_K, 0x42762d4c9504c07f},
      {TensorType::kQ4_K, 0x10f553abb1cb1733},
      {TensorType::kQ5_K, 0x4f2b6f1f712611e2},
      {TensorType::kQ6_K, 0xa860f3a0b8044b29},
      {TensorType::kBF16, 0xf3865f07ee6d3e86},
      {TensorType::kTQ1_0, 0xf0a6a83a78be1ed6},
      {TensorType::kTQ2_0, 0x57d97737fa309c31},
      {TensorType::kQ2_0, 0x8ee94d09128f884d},
  }};
  for (const Case& expected : cases) {
    std::vector<uint8_t> bytes(64 * type_info(expected.type).block_bytes);
    uint64_t state = static_cast<uint64_t>(expected.type) + 1;
    for (uint8_t& byte : bytes) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      byte = static_cast<uint8_t>(state >> 56);
    }
    CAPTURE(type_info(expected.type).name);
    CHECK(digest(values(expected.type, bytes)) == expected.digest);
  }
}
