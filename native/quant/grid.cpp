#include "quant/grid.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"

namespace bitqwen {
namespace {

using gguf::TensorType;

float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  return half_to_float(bits);
}
void put_half(uint8_t* p, float value) {
  const uint16_t bits = float_to_half(value);
  std::memcpy(p, &bits, sizeof bits);
}

// Bits of a byte from `shift` on, `width` of them.
int get_bits(uint8_t byte, int shift, int width) { return byte >> shift & ((1 << width) - 1); }
void put_bits(uint8_t& byte, int shift, int width, int value) {
  const int mask = ((1 << width) - 1) << shift;
  byte = static_cast<uint8_t>((byte & ~mask) | (value << shift & mask));
}

// Each layout: where a block keeps its factors, its group's integers, and code i, counted from the lowest.
struct Flat {
  static constexpr bool kAffine = false, kIntegers = false;
  static float factor(const uint8_t*) { return 0.0f; }
  static float offset_factor(const uint8_t*) { return 0.0f; }
  static int scale(const uint8_t*, int) { return 0; }
  static int minimum(const uint8_t*, int) { return 0; }
  static void set_scale(uint8_t*, int, int) {}
};

struct Q4_0 : Flat {
  static constexpr int kBlock = 32, kBytes = 18, kGroup = 32, kLow = -8, kHigh = 7, kStepAt = 0;
  static int code(const uint8_t* b, int i) { return get_bits(b[2 + i % 16], i / 16 * 4, 4); }
  static void set_code(uint8_t* b, int i, int c) { put_bits(b[2 + i % 16], i / 16 * 4, 4, c); }
};
struct Q2_0 : Flat {
  static constexpr int kBlock = 64, kBytes = 18, kGroup = 64, kLow = -1, kHigh = 2, kStepAt = 0;
  static int code(const uint8_t* b, int i) { return get_bits(b[2 + i / 4], i % 4 * 2, 2); }
  static void set_code(uint8_t* b, int i, int c) { put_bits(b[2 + i / 4], i % 4 * 2, 2, c); }
};
struct TQ2_0 : Flat {
  static constexpr int kBlock = 256, kBytes = 66, kGroup = 256, kLow = -1, kHigh = 1, kStepAt = 64;
  static int code(const uint8_t* b, int i) { return get_bits(b[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2); }
  static void set_code(uint8_t* b, int i, int c) {
    put_bits(b[i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2, c);
  }
};

struct Q2K {
  static constexpr bool kAffine = true, kIntegers = true;
  static constexpr int kBlock = 256, kBytes = 84, kGroup = 16, kLow = 0, kHigh = 3, kStepAt = -1;
  static constexpr int kLowUnit = 0, kHighUnit = 15;
  static float factor(const uint8_t* b) { return half_at(b + 80); }
  static float offset_factor(const uint8_t* b) { return half_at(b + 82); }
  static int scale(const uint8_t* b, int g) { return b[g] & 15; }
  static int minimum(const uint8_t* b, int g) { return b[g] >> 4; }
  static void set_scale(uint8_t* b, int g, int v) { put_bits(b[g], 0, 4, v); }
  static int code(const uint8_t* b, int i) {
    return get_bits(b[16 + i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2);
  }
  static void set_code(uint8_t* b, int i, int c) {
    put_bits(b[16 + i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2, c);
  }
};
struct Q3K {
  static constexpr bool kAffine = false, kIntegers = true;
  static constexpr int kBlock = 256, kBytes = 110, kGroup = 16, kLow = -4, kHigh = 3, kStepAt = -1;
  static constexpr int kLowUnit = -32, kHighUnit = 31;
  static float factor(const uint8_t* b) { return half_at(b + 108); }
  static float offset_factor(const uint8_t*) { return 0.0f; }
  static int scale(const uint8_t* b, int g) {
    return (get_bits(b[96 + g % 8], g / 8 * 4, 4) | get_bits(b[104 + g % 4], g / 4 * 2, 2) << 4) - 32;
  }
  static int minimum(const uint8_t*, int) { return 0; }
  static void set_scale(uint8_t* b, int g, int v) {
    put_bits(b[96 + g % 8], g / 8 * 4, 4, (v + 32) & 15);
    put_bits(b[104 + g % 4], g / 4 * 2, 2, (v + 32) >> 4);
  }
  static int code(const uint8_t* b, int i) {
    return get_bits(b[32 + i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2) | get_bits(b[i % 32], i / 32, 1) << 2;
  }
  static void set_code(uint8_t* b, int i, int c) {
    put_bits(b[32 + i / 128 * 32 + i % 32], i % 128 / 32 * 2, 2, c);
    put_bits(b[i % 32], i / 32, 1, c >> 2);
  }
};
struct SixBitScales {
  static constexpr bool kAffine = true, kIntegers = true;
  static constexpr int kBlock = 256, kGroup = 32, kLow = 0, kStepAt = -1, kLowUnit = 0, kHighUnit = 63;
  static float factor(const uint8_t* b) { return half_at(b); }
  static float offset_factor(const uint8_t* b) { return half_at(b + 2); }
  static int scale(const uint8_t* b, int g) {
    const uint8_t* p = b + 4;
    return g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4;
  }
  static int minimum(const uint8_t* b, int g) {
    const uint8_t* p = b + 4;
    return g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4;
  }
  static void set_scale(uint8_t* b, int g, int v) {
    uint8_t* p = b + 4;
    if (g < 4) return put_bits(p[g], 0, 6, v);
    put_bits(p[g + 4], 0, 4, v);
    put_bits(p[g - 4], 6, 2, v >> 4);
  }
};
struct Q4K : SixBitScales {
  static constexpr int kBytes = 144, kHigh = 15;
  static int code(const uint8_t* b, int i) {
    return get_bits(b[16 + i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4);
  }
  static void set_code(uint8_t* b, int i, int c) {
    put_bits(b[16 + i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4, c);
  }
};
struct Q5K : SixBitScales {
  static constexpr int kBytes = 176, kHigh = 31;
  static int code(const uint8_t* b, int i) {
    return get_bits(b[48 + i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4) | get_bits(b[16 + i % 32], i / 32, 1)
                                                                            << 4;
  }
  static void set_code(uint8_t* b, int i, int c) {
    put_bits(b[48 + i / 64 * 32 + i % 32], i % 64 / 32 * 4, 4, c);
    put_bits(b[16 + i % 32], i / 32, 1, c >> 4);
  }
};
struct Q6K {
  static constexpr bool kAffine = false, kIntegers = true;
  static constexpr int kBlock = 256, kBytes = 210, kGroup = 16, kLow = -32, kHigh = 31, kStepAt = -1;
  static constexpr int kLowUnit = -128, kHighUnit = 127;
  static float factor(const uint8_t* b) { return half_at(b + 208); }
  static float offset_factor(const uint8_t*) { return 0.0f; }
  static int scale(const uint8_t* b, int g) { return static_cast<int8_t>(b[192 + g]); }
  static int minimum(const uint8_t*, int) { return 0; }
  static void set_scale(uint8_t* b, int g, int v) {
    b[192 + g] = static_cast<uint8_t>(static_cast<int8_t>(v));
  }
  static int code(const uint8_t* b, int i) {
    const int in_half = i % 128;
    return get_bits(b[i / 128 * 64 + in_half % 64], in_half / 64 * 4, 4) |
           get_bits(b[128 + i / 128 * 32 + in_half % 32], in_half / 32 * 2, 2) << 4;
  }
  static void set_code(uint8_t* b, int i, int c) {
    const int in_half = i % 128;
    put_bits(b[i / 128 * 64 + in_half % 64], in_half / 64 * 4, 4, c);
    put_bits(b[128 + i / 128 * 32 + in_half % 32], in_half / 32 * 2, 2, c >> 4);
  }
};

/// Calls body with the type's layout; false where it has none.
template <class Body>
bool with_layout(TensorType type, Body&& body) {
  switch (type) {
    case TensorType::kQ4_0: body(Q4_0{}); return true;
    case TensorType::kQ2_0: body(Q2_0{}); return true;
    case TensorType::kTQ2_0: body(TQ2_0{}); return true;
    case TensorType::kQ2_K: body(Q2K{}); return true;
    case TensorType::kQ3_K: body(Q3K{}); return true;
    case TensorType::kQ4_K: body(Q4K{}); return true;
    case TensorType::kQ5_K: body(Q5K{}); return true;
    case TensorType::kQ6_K: body(Q6K{}); return true;
    default: return false;
  }
}

}  // namespace

std::optional<GridShape> grid_shape(TensorType type) {
  GridShape shape;
  const bool known = with_layout(type, [&]<class L>(L) { shape = {L::kGroup, L::kLow, L::kHigh}; });
  return known ? std::optional(shape) : std::nullopt;
}

UnitRange unit_range(TensorType type) {
  UnitRange range;
  with_layout(type, [&]<class L>(L) {
    if constexpr (L::kIntegers) range = {L::kLowUnit, L::kHighUnit};
  });
  return range;
}

void read_grid(TensorType type, const uint8_t* bytes, int64_t count, const GridArrays& out) {
  with_layout(type, [&]<class L>(L) {
    const uint8_t* b = bytes;
    for (int64_t i = 0; i < count; i += L::kBlock, b += L::kBytes) {
      for (int g = 0; g < L::kBlock / L::kGroup; ++g) {
        const int64_t at = i / L::kGroup + g;
        if constexpr (L::kIntegers) {
          out.units[at] = L::factor(b);
          out.steps[at] = L::factor(b) * static_cast<float>(L::scale(b, g));
          out.offsets[at] = L::kAffine ? L::offset_factor(b) * static_cast<float>(L::minimum(b, g)) : 0.0f;
        } else {
          out.units[at] = 0.0f;
          out.steps[at] = half_at(b + L::kStepAt);
          out.offsets[at] = 0.0f;
        }
      }
      for (int j = 0; j < L::kBlock; ++j) out.codes[i + j] = static_cast<int8_t>(L::code(b, j) + L::kLow);
    }
  });
}

void write_grid(TensorType type, const float* steps, const int8_t* codes, int64_t count, uint8_t* bytes) {
  with_layout(type, [&]<class L>(L) {
    uint8_t* b = bytes;
    for (int64_t i = 0; i < count; i += L::kBlock, b += L::kBytes) {
      for (int g = 0; g < L::kBlock / L::kGroup; ++g) {
        const float step = steps[i / L::kGroup + g];
        if constexpr (L::kIntegers) {
          const float unit = L::factor(b);
          const float number =
              unit != 0.0f ? std::clamp<float>(step / unit, L::kLowUnit, L::kHighUnit) : 0.0f;
          L::set_scale(b, g, static_cast<int>(std::lrint(number)));
        } else {
          put_half(b + L::kStepAt, step);
        }
      }
      for (int j = 0; j < L::kBlock; ++j) {
        L::set_code(b, j, std::clamp<int>(codes[i + j], L::kLow, L::kHigh) - L::kLow);
      }
    }
  });
}

}  // namespace bitqwen
