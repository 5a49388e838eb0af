#include "gguf/dequantize.h"

#include <cstring>

#include "gguf/codebook.h"
#include "half.h"

namespace bitqwen::gguf {
namespace {

float half(const uint8_t* p) { return half_to_float(load_u16(p)); }

void q4_0(const uint8_t* b, float* y) {
  const float d = half(b);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>((b[2 + i] & 15) - 8) * d;
    y[i + 16] = static_cast<float>((b[2 + i] >> 4) - 8) * d;
  }
}

void q4_1(const uint8_t* b, float* y) {
  const float d = half(b), m = half(b + 2);
  for (int i = 0; i < 16; ++i) {
    y[i] = static_cast<float>(b[4 + i] & 15) * d + m;
    y[i + 16] = static_cast<float>(b[4 + i] >> 4) * d + m;
  }
}

uint32_t high_bits(const uint8_t* p) {
  uint32_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return bits;
}

void q5_0(const uint8_t* b, float* y) {
  const float d = half(b);
  const uint32_t high = high_bits(b + 2);
  for (int i = 0; i < 16; ++i) {
    const int low = (b[6 + i] & 15) | static_cast<int>(high >> i & 1) << 4;
    const int up = (b[6 + i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4;
    y[i] = static_cast<float>(low - 16) * d;
    y[i + 16] = static_cast<float>(up - 16) * d;
  }
}

void q5_1(const uint8_t* b, float* y) {
  const float d = half(b), m = half(b + 2);
  const uint32_t high = high_bits(b + 4);
  for (int i = 0; i < 16; ++i) {
    const int low = (b[8 + i] & 15) | static_cast<int>(high >> i & 1) << 4;
    const int up = (b[8 + i] >> 4) | static_cast<int>(high >> (i + 16) & 1) << 4;
    y[i] = static_cast<float>(low) * d + m;
    y[i + 16] = static_cast<float>(up) * d + m;
  }
}

void q8_0(const uint8_t* b, float* y) {
  const float d = half(b);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(static_cast<int8_t>(b[2 + i])) * d;
}

// 16 bytes of 4-bit (scale, minimum), 64 bytes of 2-bit codes, d, dmin.
void q2_k(const uint8_t* b, float* y) {
  const float d = half(b + 80), dmin = half(b + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t both = b[i / 16];
    const int code = b[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    y[i] =
        d * static_cast<float>(both & 15) * static_cast<float>(code) - dmin * static_cast<float>(both >> 4);
  }
}

// 32 bytes of third bits, 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, d.
void q3_k(const uint8_t* b, float* y) {
  const uint8_t* scales = b + 96;
  const float d = half(b + 108);
  for (int i = 0; i < 256; ++i) {
    const int s = i / 16;
    const int low = scales[s % 8] >> (s / 8 * 4) & 15;
    const int scale = (low | (scales[8 + s % 4] >> (s / 4 * 2) & 3) << 4) - 32;
    const int code = b[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const int third = b[i % 32] >> (i / 32) & 1;
    y[i] = d * static_cast<float>(scale) * static_cast<float>(code - (third ? 0 : 4));
  }
}

struct SixBits {
  int scale, minimum;
};
SixBits six_bits(const uint8_t* p, int cell) {
  if (cell < 4) return {p[cell] & 63, p[cell + 4] & 63};
  return {(p[cell + 4] & 15) | p[cell - 4] >> 6 << 4, p[cell + 4] >> 4 | p[cell] >> 6 << 4};
}

// d, dmin, 12 bytes of 6-bit scales and minima, 128 bytes of 4-bit codes.
void q4_k(const uint8_t* b, float* y) {
  const float d = half(b), dmin = half(b + 2);
  for (int i = 0; i < 256; ++i) {
    const SixBits s = six_bits(b + 4, i / 32);
    const int code = b[16 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
    y[i] = d * static_cast<float>(s.scale) * static_cast<float>(code) - dmin * static_cast<float>(s.minimum);
  }
}

// As Q4_K, with 32 bytes of fifth bits before the codes.
void q5_k(const uint8_t* b, float* y) {
  const float d = half(b), dmin = half(b + 2);
  for (int i = 0; i < 256; ++i) {
    const SixBits s = six_bits(b + 4, i / 32);
    const int low = b[48 + i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15;
    const int code = low | (b[16 + i % 32] >> (i / 32) & 1) << 4;
    y[i] = d * static_cast<float>(s.scale) * static_cast<float>(code) - dmin * static_cast<float>(s.minimum);
  }
}

// 128 bytes of low nibbles, 64 bytes of high pairs, 16 signed scales, d.
void q6_k(const uint8_t* b, float* y) {
  const float d = half(b + 208);
  for (int i = 0; i < 256; ++i) {
    const int in_half = i % 128;
    const int low = b[i / 128 * 64 + in_half % 64] >> (in_half / 64 * 4) & 15;
    const int high = b[128 + i / 128 * 32 + in_half % 32] >> (in_half / 32 * 2) & 3;
    const int scale = static_cast<int8_t>(b[192 + i / 16]);
    y[i] = d * static_cast<float>(scale) * static_cast<float>((low | high << 4) - 32);
  }
}

// Five trits a byte as the fraction byte/256 in base 3; the last 16 values, four a byte.
void tq1_0(const uint8_t* b, float* y) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const float d = half(b + 52);
  const auto trit = [&](uint8_t byte, int n) {
    const uint8_t shifted = static_cast<uint8_t>(byte * kPowers[n]);
    return static_cast<float>((shifted * 3 >> 8) - 1);
  };
  float* out = y;
  for (int n = 0; n < 5; ++n) {
    for (int j = 0; j < 32; ++j) *out++ = trit(b[j], n) * d;
  }
  for (int n = 0; n < 5; ++n) {
    for (int j = 0; j < 16; ++j) *out++ = trit(b[32 + j], n) * d;
  }
  for (int n = 0; n < 4; ++n) {
    for (int j = 0; j < 4; ++j) *out++ = trit(b[48 + j], n) * d;
  }
}

void tq2_0(const uint8_t* b, float* y) {
  const float d = half(b + 64);
  for (int i = 0; i < 256; ++i) {
    const int code = b[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    y[i] = static_cast<float>(code - 1) * d;
  }
}

void q2_0(const uint8_t* b, float* y) {
  const float d = half(b);
  for (int i = 0; i < 64; ++i) y[i] = static_cast<float>((b[2 + i / 4] >> (i % 4 * 2) & 3) - 1) * d;
}

// One block of pairs: d f16; the codes' low four bits; their higher bits, if any. Fields lie from the lowest
// bit up, in the order of the pairs. Pair 4 * g + j holds columns 8 * g + j and 8 * g + 4 + j.
void pairs(const CodebookShape& shape, const int8_t* codebook, const uint8_t* b, float* y) {
  const float d = half(b);
  const uint8_t* low = b + 2;
  const uint8_t* high = low + 32;
  const uint32_t high_bits = (shape.entries == 32 ? 1u : 0u) + (shape.mirrored ? 1u : 0u);
  for (uint32_t i = 0; i < 64; ++i) {
    uint32_t code = low[i / 2] >> (i % 2 * 4) & 15u;
    if (high_bits > 0) {
      const uint32_t at = i * high_bits;
      code |= (high[at / 8] >> at % 8 & ((1u << high_bits) - 1)) << 4;
    }
    float* first = y + i / 4 * 8 + i % 4;
    first[0] = static_cast<float>(codebook_value(shape, codebook, code, 0)) * d;
    first[4] = static_cast<float>(codebook_value(shape, codebook, code, 1)) * d;
  }
}

void i8(const uint8_t* b, float* y) { *y = static_cast<float>(static_cast<int8_t>(*b)); }
void f32(const uint8_t* b, float* y) { std::memcpy(y, b, sizeof *y); }
void f16(const uint8_t* b, float* y) { *y = half(b); }
void bf16(const uint8_t* b, float* y) { *y = bfloat16_to_float(load_u16(b)); }

using Block = void (*)(const uint8_t*, float*);
Block block_of(TensorType type) {
  switch (type) {
    case TensorType::kF32: return f32;
    case TensorType::kF16: return f16;
    case TensorType::kQ4_0: return q4_0;
    case TensorType::kQ4_1: return q4_1;
    case TensorType::kQ5_0: return q5_0;
    case TensorType::kQ5_1: return q5_1;
    case TensorType::kQ8_0: return q8_0;
    case TensorType::kQ2_K: return q2_k;
    case TensorType::kQ3_K: return q3_k;
    case TensorType::kQ4_K: return q4_k;
    case TensorType::kQ5_K: return q5_k;
    case TensorType::kQ6_K: return q6_k;
    case TensorType::kBF16: return bf16;
    case TensorType::kTQ1_0: return tq1_0;
    case TensorType::kTQ2_0: return tq2_0;
    case TensorType::kQ2_0: return q2_0;
    case TensorType::kI8: return i8;
    case TensorType::kV2:
    case TensorType::kV2_5:
    case TensorType::kV3: break;  // with a codebook: pairs
  }
  return nullptr;
}

}  // namespace

void dequantize(TensorType type, const uint8_t* bytes, int64_t count, float* out, const int8_t* codebook) {
  const TypeInfo& info = type_info(type);
  const Block block = block_of(type);
  for (int64_t i = 0; i < count; i += info.block_size, bytes += info.block_bytes) {
    if (info.codebook.entries > 0) {
      pairs(info.codebook, codebook, bytes, out + i);
    } else {
      block(bytes, out + i);
    }
  }
}

}  // namespace bitqwen::gguf
