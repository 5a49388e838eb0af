// 8 rows in a 256-bit register.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd_rows.h"
#include "kernels/x86_dots.h"
#include "kernels/x86_quantize.h"

namespace bitqwen {
namespace {

struct Lanes256 {
#define BITQWEN_LANES static BITQWEN_INLINE
  using Bytes = __m256i;
  using Ints = __m256i;
  using Floats = __m256;
  using Quad = __m256i;
  static constexpr int kRows = 8;
#if defined(BITQWEN_DPBUSD256)
  template <int kBits>
  using Dot = ProductDot<Lanes256, kBits>;
  BITQWEN_LANES Ints dot_products(Ints sums, Bytes codes, Quad x) {
    return BITQWEN_DPBUSD256(sums, codes, x);
  }
#else
  template <int kBits>
  using Dot = PairDot<Lanes256, kBits>;
#endif

  BITQWEN_LANES Bytes load(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  BITQWEN_LANES void store(uint8_t* p, Bytes v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  template <int kBits, int kFrom>
  BITQWEN_LANES Bytes field(Bytes v) {
    if constexpr (kFrom != 0) v = _mm256_srli_epi16(v, kFrom);
    return kBits == 8 ? v : field_in_place<kBits, 0>(v);
  }
  template <int kBits, int kFrom>
  BITQWEN_LANES Bytes field_in_place(Bytes v) {
    return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kFrom)));
  }
  template <int kBits, int kFrom, int kTo>
  BITQWEN_LANES Bytes with_field(Bytes low, Bytes v) {
    if constexpr (kFrom > kTo) v = _mm256_srli_epi16(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = _mm256_slli_epi16(v, kTo - kFrom);
    return _mm256_or_si256(low, field_in_place<kBits, kTo>(v));
  }
  BITQWEN_LANES Quad quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
  }

  // Of each coordinate the bytes of codes 16 i to 16 i + 15. Mirrored codebooks: of the codes whose sign is
  // set, because flip() gives zero for those and 63 for the others.
  struct PointTables {
    Bytes dims[2][2];
  };
  template <int kHighBits>
  BITQWEN_LANES PointTables load_points(const CodePoints& points) {
    PointTables tables;
    constexpr int kFirst = kHighBits == 0 ? 0 : 8 << kHighBits;
    for (int dim = 0; dim < 2; ++dim) {
      for (int i = 0; i < 2; ++i) {
        const uint8_t* p = points.dims[dim] + kFirst + 16 * i;
        tables.dims[dim][i] =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
      }
    }
    return tables;
  }
  /// Bit kFrom of every byte to its bit 7; the other bits are anything.
  template <int kFrom>
  BITQWEN_LANES Bytes to_top(Bytes v) {
    return kFrom == 7 ? v : _mm256_slli_epi16(v, 7 - kFrom);
  }
  /// 63 where bit kFrom is not set, 0 where it is: a shuffle gives 0 for an index whose top bit is set.
  template <int kFrom>
  BITQWEN_LANES Bytes flip(Bytes v) {
    return _mm256_shuffle_epi8(_mm256_set1_epi8(63), to_top<kFrom>(v));
  }
  /// The points of four codes a row: low bits at kLowAt of `low`, higher ones at kHighAt of `high`.
  template <int kHighBits, int kLowAt, int kHighAt>
  BITQWEN_LANES void points(const PointTables& tables, Bytes low, Bytes high, Bytes (&out)[2]) {
    const Bytes index = field<4, kLowAt>(low);
    for (int dim = 0; dim < 2; ++dim) {
      out[dim] = _mm256_shuffle_epi8(tables.dims[dim][0], index);
      if constexpr (kHighBits == 2) {
        const Bytes other = _mm256_shuffle_epi8(tables.dims[dim][1], index);
        out[dim] = _mm256_blendv_epi8(out[dim], other, to_top<kHighAt>(high));
      }
    }
    if constexpr (kHighBits > 0) {
      const Bytes mask = flip<kHighAt + kHighBits - 1>(high);
      for (int dim = 0; dim < 2; ++dim) out[dim] = _mm256_xor_si256(out[dim], mask);
    }
  }

  // Multiplied by three, a byte carries its next trit out of its top. What is kept is one less than the
  // byte (but not less than zero): the averages, which round up, then find where the carry changes.
  struct TritTables {};
  struct Trits {
    Bytes rest;
  };
  BITQWEN_LANES TritTables load_trits() { return {}; }
  BITQWEN_LANES Trits open_trits(const TritTables&, Bytes v) {
    return {_mm256_subs_epu8(v, _mm256_set1_epi8(1))};
  }
  template <int kDigit, bool kInPlace>
  BITQWEN_LANES Bytes trit(Trits& trits) {
    const Bytes rest = trits.rest;
    const Bytes code = field<2, 6>(_mm256_avg_epu8(rest, _mm256_avg_epu8(rest, _mm256_setzero_si256())));
    if constexpr (kDigit < 4) {
      const Bytes twice = _mm256_add_epi8(rest, _mm256_add_epi8(rest, _mm256_set1_epi8(2)));
      trits.rest = _mm256_add_epi8(rest, twice);
    }
    return code;
  }

  BITQWEN_LANES Ints zero_ints() { return _mm256_setzero_si256(); }
  BITQWEN_LANES Ints broadcast_int(const int32_t* p) { return _mm256_set1_epi32(*p); }
  BITQWEN_LANES Ints add16(Ints a, Ints b) { return _mm256_add_epi16(a, b); }
  BITQWEN_LANES Ints add32(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  template <int kShift>
  BITQWEN_LANES Ints shift_left(Ints a) {
    return _mm256_slli_epi32(a, kShift);
  }
  template <int kShift>
  BITQWEN_LANES Ints shift_right(Ints a) {
    return _mm256_srai_epi32(a, kShift);
  }
  BITQWEN_LANES Ints pair_products(Bytes codes, Quad x) { return _mm256_maddubs_epi16(codes, x); }
  BITQWEN_LANES Ints widen_pairs(Ints a) { return _mm256_madd_epi16(a, _mm256_set1_epi16(1)); }
  BITQWEN_LANES Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }

  BITQWEN_LANES Floats zero() { return _mm256_setzero_ps(); }
  BITQWEN_LANES Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
  BITQWEN_LANES void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
  BITQWEN_LANES Floats broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  BITQWEN_LANES Floats from_half(const uint8_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  BITQWEN_LANES Floats from_bfloat16(const uint8_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
  BITQWEN_LANES Floats from_u8(const uint8_t* p) {
    return to_floats(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_LANES Floats from_s8(const uint8_t* p) {
    return to_floats(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_LANES Floats add_constant(Floats a, float constant) {
    return _mm256_add_ps(a, _mm256_set1_ps(constant));
  }
  BITQWEN_LANES Floats negate(Floats a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  BITQWEN_LANES Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  BITQWEN_LANES Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
#undef BITQWEN_LANES
};

struct V {
  using Lanes = Lanes256;
  template <class R, int kBits, int kColumns, int kPlaces>
  using Dots = ColumnDots<R, kBits, kColumns, kPlaces>;
  static constexpr int kTileColumns = 6;
  static constexpr bool kTritsInPlace = false;
  /// Registers of rows for a tile of kColumns: more columns leave less room for rows.
  static constexpr int registers(int columns) { return columns <= 2 ? 2 : 1; }
#if defined(BITQWEN_DPBUSD256)
  static constexpr bool kSumsInPlace = true;
#else
  static constexpr bool kSumsInPlace = false;
#endif
  static BITQWEN_INLINE void prefetch(const uint8_t* p) {
    _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0);
  }
};

}  // namespace
}  // namespace bitqwen
