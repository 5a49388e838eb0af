// 4 rows in a 128-bit register, with or without the dot-product and matrix instructions.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <type_traits>

#include "kernels/simd_rows.h"

namespace bitqwen {
namespace {

#if defined(__ARM_FEATURE_DOTPROD)
/// Four products a lane are added to an int32 at once.
template <int kBits>
struct NeonDot {
  int32x4_t sums;

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t* minus_sum) {
    if constexpr (kOffset == 0 || kBits == 8) {  // eight bits are made signed: no offset is left
      sums = vdupq_n_s32(0);
    } else {
      sums = vshlq_n_s32(vld1q_dup_s32(minus_sum), __builtin_ctz(kOffset));
    }
  }
  template <int kStep>
  BITQWEN_INLINE void add(uint8x16_t codes, int8x16_t x) {
    if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    sums = vdotq_s32(sums, vreinterpretq_s8_u8(codes), x);
  }
  template <int kOffset>
  BITQWEN_INLINE float32x4_t value(const int32_t*) const {
    return vcvtq_f32_s32(sums);
  }
};
#else
/// Products are added in int16, one lane a column, as long as kLimit steps fit.
template <int kBits>
struct NeonDot {
  static constexpr int kLimit = 32767 / (127 * (kBits == 8 ? 128 : (1 << kBits) - 1));
  static constexpr int kLongest = kBits == 2 || kBits == 6 ? 32 : kBits == 3 ? 4 : 8;  // steps of a cell
  static constexpr bool kWidens = kLimit < kLongest;
  int16x8_t first, second;  // rows 0 and 1, rows 2 and 3
  int32x4_t sums;           // of what has been widened

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t*) {
    first = second = vdupq_n_s16(0);
    if constexpr (kWidens) sums = vdupq_n_s32(0);
  }
  template <int kStep>
  BITQWEN_INLINE void add(uint8x16_t codes, int8x16_t x) {
    if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    const int8x16_t w = vreinterpretq_s8_u8(codes);
    if constexpr (kWidens && kStep > 0 && kStep % kLimit == 0) {
      sums = vaddq_s32(sums, widened());
      first = vmull_s8(vget_low_s8(w), vget_low_s8(x));
      second = vmull_high_s8(w, x);
    } else {
      first = vmlal_s8(first, vget_low_s8(w), vget_low_s8(x));
      second = vmlal_high_s8(second, w, x);
    }
  }
  BITQWEN_INLINE int32x4_t widened() const { return vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second)); }
  template <int kOffset>
  BITQWEN_INLINE float32x4_t value(const int32_t* minus_sum) const {
    int32x4_t all = widened();
    if constexpr (kWidens) all = vaddq_s32(all, sums);
    if constexpr (kOffset != 0 && kBits != 8) {
      all = vaddq_s32(all, vshlq_n_s32(vld1q_dup_s32(minus_sum), __builtin_ctz(kOffset)));
    }
    return vcvtq_f32_s32(all);
  }
};
#endif

struct Lanes128 {
#define BITQWEN_LANES static BITQWEN_INLINE
  using Bytes = uint8x16_t;
  using Floats = float32x4_t;
  using Quad = int8x16_t;
  static constexpr int kRows = 4;
  template <int kBits>
  using Dot = NeonDot<kBits>;

  BITQWEN_LANES Bytes load(const uint8_t* p) { return vld1q_u8(p); }
  BITQWEN_LANES void store(uint8_t* p, Bytes v) { vst1q_u8(p, v); }
  template <int kBits, int kFrom>
  BITQWEN_LANES Bytes field(Bytes v) {
    if constexpr (kFrom != 0) v = vshrq_n_u8(v, kFrom);
    return kFrom + kBits == 8 ? v : vandq_u8(v, vdupq_n_u8((1 << kBits) - 1));
  }
  template <int kBits, int kFrom, int kTo>
  BITQWEN_LANES Bytes with_field(Bytes low, Bytes v) {
    if constexpr (kFrom > kTo) v = vshrq_n_u8(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = vshlq_n_u8(v, kTo - kFrom);
    return vorrq_u8(low, vandq_u8(v, vdupq_n_u8(((1 << kBits) - 1) << kTo)));
  }
  BITQWEN_LANES Quad quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }

  // Multiplied by three, a byte carries its next trit out of its top.
  struct TritTables {};
  struct Trits {
    Bytes rest;
  };
  BITQWEN_LANES TritTables load_trits() { return {}; }
  BITQWEN_LANES Trits open_trits(const TritTables&, Bytes v) { return {v}; }
  template <int kDigit, bool kInPlace>
  BITQWEN_LANES Bytes trit(Trits& trits) {
    const Bytes rest = trits.rest;
    if constexpr (kDigit < 4) trits.rest = vaddq_u8(rest, vaddq_u8(rest, rest));
    return vshrq_n_u8(vhaddq_u8(rest, vshrq_n_u8(rest, 1)), 6);
  }

  struct PointTables {
    uint8x16x4_t dims[2];
  };
  template <int kHighBits>
  BITQWEN_LANES PointTables load_points(const CodePoints& points) {
    return {{vld1q_u8_x4(points.dims[0]), vld1q_u8_x4(points.dims[1])}};
  }
  /// The points of four codes a row: low bits at kLowAt of `low`, higher ones at kHighAt of `high`.
  template <int kHighBits, int kLowAt, int kHighAt>
  BITQWEN_LANES void points(const PointTables& tables, Bytes low, Bytes high, Bytes (&out)[2]) {
    Bytes code = field<4, kLowAt>(low);
    if constexpr (kHighBits > 0) code = with_field<kHighBits, kHighAt, 4>(code, high);
    for (int dim = 0; dim < 2; ++dim) {
      const uint8x16x4_t& table = tables.dims[dim];
      if constexpr (kHighBits == 0) out[dim] = vqtbl1q_u8(table.val[0], code);
      if constexpr (kHighBits == 1) out[dim] = vqtbl2q_u8({table.val[0], table.val[1]}, code);
      if constexpr (kHighBits == 2) out[dim] = vqtbl4q_u8(table, code);
    }
  }

  BITQWEN_LANES Floats zero() { return vdupq_n_f32(0.0f); }
  BITQWEN_LANES Floats load_floats(const float* p) { return vld1q_f32(p); }
  BITQWEN_LANES void store_floats(float* p, Floats a) { vst1q_f32(p, a); }
  BITQWEN_LANES Floats broadcast(const float* p) { return vld1q_dup_f32(p); }
  BITQWEN_LANES uint16x4_t load_halves(const uint8_t* p) {
    uint64_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return vcreate_u16(four);
  }
  BITQWEN_LANES Floats from_half(const uint8_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(load_halves(p)));
  }
  BITQWEN_LANES Floats from_bfloat16(const uint8_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(load_halves(p), 16));
  }
  BITQWEN_LANES uint8x8_t load_four(const uint8_t* p) {
    uint32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return vcreate_u8(four);
  }
  BITQWEN_LANES Floats from_u8(const uint8_t* p) {
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(load_four(p)))));
  }
  BITQWEN_LANES Floats from_s8(const uint8_t* p) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(load_four(p))))));
  }
  BITQWEN_LANES Floats add_constant(Floats a, float constant) { return vaddq_f32(a, vdupq_n_f32(constant)); }
  BITQWEN_LANES Floats negate(Floats a) { return vnegq_f32(a); }
  BITQWEN_LANES Floats mul(Floats a, Floats b) { return vmulq_f32(a, b); }
  BITQWEN_LANES Floats fma(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
#undef BITQWEN_LANES
};

#if defined(__ARM_FEATURE_MATMUL_INT8)
/// Two columns at a time: one instruction multiplies 2 rows by 2 columns, 8 values deep, which are two steps.
/// Steps alternate: an even one waits for the odd one that follows. What is left of an odd number of columns
/// is a column by itself.
template <class R, int kBits, int kColumns>
struct MatrixDots {
  static constexpr int kCount = R::kRows / Lanes128::kRows, kPairs = kColumns / 2;
  int32x4_t sums[kPairs][kCount][2];  // of rows 0 and 1, 2 and 3: row, column 00, 01, 10, 11
  typename R::template Dot<kBits> last;
  typename R::Bytes even;
  const int8_t* even_x;

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t* minus_sums) {
    unrolled<kPairs>([&](auto pair) BITQWEN_INLINE_LAMBDA {
      int32x4_t first = vdupq_n_s32(0);
      if constexpr (kOffset != 0 && kBits != 8) {
        const int32x2_t both = vld1_s32(minus_sums + 2 * pair);
        first = vshlq_n_s32(vcombine_s32(both, both), __builtin_ctz(kOffset));
      }
      for (auto& of_register : sums[pair]) of_register[0] = of_register[1] = first;
    });
    if constexpr (kColumns % 2 != 0) last.template start<kOffset>(minus_sums + kColumns - 1);
  }
  template <int kPlace, int kStep>
  BITQWEN_INLINE void add(const typename R::Bytes& codes, const int8_t* x) {
    static_assert(kPlace == 0);
    if constexpr (kColumns % 2 != 0) last.template add<kStep>(codes, R::quad(x + 4 * (kColumns - 1)));
    if constexpr (kStep % 2 == 0) {
      even = codes;
      even_x = x;
    } else {
      int32x4_t rows[kCount][2];
      for (int i = 0; i < kCount; ++i) {
        const int32x4_t a = as_signed(even.v[i]), b = as_signed(codes.v[i]);
        rows[i][0] = vzip1q_s32(a, b);
        rows[i][1] = vzip2q_s32(a, b);
      }
      unrolled<kPairs>([&](auto pair) BITQWEN_INLINE_LAMBDA {
        const int32x2_t a = vreinterpret_s32_s8(vld1_s8(even_x + 8 * pair));
        const int32x2_t b = vreinterpret_s32_s8(vld1_s8(x + 8 * pair));
        const int8x16_t columns = vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(a, b), vzip2_s32(a, b)));
        for (int i = 0; i < kCount; ++i) {
          for (int half = 0; half < 2; ++half) {
            int32x4_t& sum = sums[pair][i][half];
            sum = vmmlaq_s32(sum, vreinterpretq_s8_s32(rows[i][half]), columns);
          }
        }
      });
    }
  }
  template <int kColumn, int kOffset, int kShift>
  BITQWEN_INLINE typename R::Floats value(const int32_t* minus_sums) const {
    if constexpr (kColumn == 2 * kPairs) {
      return last.template value<kOffset>(minus_sums + kColumn);
    } else {
      typename R::Floats out;
      for (int i = 0; i < kCount; ++i) {
        const int32x4_t a = sums[kColumn / 2][i][0], b = sums[kColumn / 2][i][1];
        out.v[i] = vcvtq_f32_s32(kColumn % 2 == 0 ? vuzp1q_s32(a, b) : vuzp2q_s32(a, b));
      }
      return out;
    }
  }

 private:
  static BITQWEN_INLINE int32x4_t as_signed(uint8x16_t codes) {
    if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    return vreinterpretq_s32_u8(codes);
  }
};
#endif

struct V {
  using Lanes = Lanes128;
#if defined(__ARM_FEATURE_MATMUL_INT8)
  template <class R, int kBits, int kColumns, int kPlaces>
  using Dots =
      std::conditional_t<(kColumns > 1), MatrixDots<R, kBits, kColumns>, ColumnDots<R, kBits, 1, kPlaces>>;
#else
  template <class R, int kBits, int kColumns, int kPlaces>
  using Dots = ColumnDots<R, kBits, kColumns, kPlaces>;
#endif
  static constexpr int kTileColumns = 6;
  static constexpr bool kTritsInPlace = false;
  /// Registers of rows for a tile of kColumns: more columns leave less room for rows.
  static constexpr int registers(int columns) { return columns <= 2 ? 4 : 2; }
  static constexpr bool kSumsInPlace = false;  // the dot product takes signed bytes only
  static BITQWEN_INLINE void prefetch(const uint8_t* p) { __builtin_prefetch(p); }
};

BITQWEN_INLINE uint32_t largest_magnitude(const float* values, int count) {
  uint32x4_t largest = vdupq_n_u32(0);
  for (int j = 0; j < count; j += 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vabsq_f32(vld1q_f32(values + j)));
    largest = vmaxq_u32(largest, bits);
  }
  return vmaxvq_u32(largest);
}

BITQWEN_INLINE void quantize_32(const float* values, float inverse, int8_t* codes, int32_t* sums) {
  for (int half = 0; half < 2; ++half) {
    const auto round = [&](int i) BITQWEN_INLINE_LAMBDA {
      return vqmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(values + 16 * half + 4 * i), inverse)));
    };
    const int8x8_t low = vqmovn_s16(vcombine_s16(round(0), round(1)));
    const int8x8_t high = vqmovn_s16(vcombine_s16(round(2), round(3)));
    const int8x16_t packed = vcombine_s8(low, high);
    vst1q_s8(codes + 16 * half, packed);
    sums[half] = vaddlvq_s8(packed);
  }
}

}  // namespace
}  // namespace bitqwen
