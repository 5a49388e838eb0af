// 16 rows in a 512-bit register.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd_rows.h"
#include "kernels/x86_dots.h"
#include "kernels/x86_quantize.h"

namespace bitqwen {
namespace {

#if defined(__AVX512VBMI__)
/// What each byte of five trits stands for: the code of the first, and the codes of the others.
struct TritCodes {
  alignas(64) uint8_t first[256] = {};
  alignas(64) uint8_t others[256] = {};
};
constexpr TritCodes make_trit_codes() {
  TritCodes codes;
  for (int byte = 0; byte < 256; ++byte) {
    int rest = byte * 3;
    codes.first[byte] = static_cast<uint8_t>(rest >> 8);
    for (int digit = 0; digit < 4; ++digit) {
      rest = rest % 256 * 3;
      codes.others[byte] = static_cast<uint8_t>(codes.others[byte] | rest >> 8 << 2 * digit);
    }
  }
  return codes;
}
constexpr TritCodes kTritCodes = make_trit_codes();
#endif

struct Lanes512 {
#define BITQWEN_LANES static BITQWEN_INLINE
  using Bytes = __m512i;
  using Ints = __m512i;
  using Floats = __m512;
  using Quad = __m512i;
  static constexpr int kRows = 16;
#if defined(__AVX512VNNI__)
  template <int kBits>
  using Dot = ProductDot<Lanes512, kBits>;
  BITQWEN_LANES Ints dot_products(Ints sums, Bytes codes, Quad x) {
    return _mm512_dpbusd_epi32(sums, codes, x);
  }
#else
  template <int kBits>
  using Dot = PairDot<Lanes512, kBits>;
#endif

  BITQWEN_LANES Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  BITQWEN_LANES void store(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
  template <int kBits, int kFrom>
  BITQWEN_LANES Bytes field(Bytes v) {
    if constexpr (kFrom != 0) v = _mm512_srli_epi16(v, kFrom);
    return kBits == 8 ? v : field_in_place<kBits, 0>(v);
  }
  template <int kBits, int kFrom>
  BITQWEN_LANES Bytes field_in_place(Bytes v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kFrom)));
  }
  template <int kBits, int kFrom, int kTo>
  BITQWEN_LANES Bytes with_field(Bytes low, Bytes v) {
    if constexpr (kFrom > kTo) v = _mm512_srli_epi16(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = _mm512_slli_epi16(v, kTo - kFrom);
    const Bytes mask = _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo));
    return _mm512_ternarylogic_epi32(low, v, mask, 0xf8);  // low | (v & mask)
  }
  BITQWEN_LANES Quad quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }

#if defined(__AVX512VBMI__)
  // One permutation looks up six bits, whatever the other two are.
  struct PointTables {
    Bytes dims[2];
  };
  template <int kHighBits>
  BITQWEN_LANES PointTables load_points(const CodePoints& points) {
    return {{load(points.dims[0]), load(points.dims[1])}};
  }
  /// The points of four codes a row: low bits at kLowAt of `low`, higher ones at kHighAt of `high`.
  template <int kHighBits, int kLowAt, int kHighAt>
  BITQWEN_LANES void points(const PointTables& tables, Bytes low, Bytes high, Bytes (&out)[2]) {
    Bytes code = kLowAt == 0 ? low : _mm512_srli_epi16(low, kLowAt);
    if constexpr (kHighBits > 0) {
      if constexpr (kHighAt > 4) high = _mm512_srli_epi16(high, kHighAt - 4);
      if constexpr (kHighAt < 4) high = _mm512_slli_epi16(high, 4 - kHighAt);
      const Bytes mask = _mm512_set1_epi8(((1 << kHighBits) - 1) << 4);
      code = _mm512_ternarylogic_epi32(code, high, mask, 0xd8);  // mask ? high : code
    }
    for (int dim = 0; dim < 2; ++dim) out[dim] = _mm512_permutexvar_epi8(code, tables.dims[dim]);
  }

  // One look-up of the byte gives the first trit's code, one the others', at bits 0, 2, 4 and 6.
  struct TritTables {
    Bytes first[4];
    Bytes others[4];
  };
  struct Trits {
    Bytes first;
    Bytes others;
  };
  BITQWEN_LANES TritTables load_trits() {
    TritTables tables;
    for (int i = 0; i < 4; ++i) {
      tables.first[i] = load(kTritCodes.first + 64 * i);
      tables.others[i] = load(kTritCodes.others + 64 * i);
    }
    return tables;
  }
  BITQWEN_LANES Bytes look_up(const Bytes (&table)[4], Bytes index, __mmask64 upper) {
    const Bytes low = _mm512_permutex2var_epi8(table[0], index, table[1]);
    return _mm512_mask_mov_epi8(low, upper, _mm512_permutex2var_epi8(table[2], index, table[3]));
  }
  BITQWEN_LANES Trits open_trits(const TritTables& tables, Bytes v) {
    const __mmask64 upper = _mm512_movepi8_mask(v);
    return {look_up(tables.first, v, upper), look_up(tables.others, v, upper)};
  }
  template <int kDigit, bool kInPlace>
  BITQWEN_LANES Bytes trit(Trits& trits) {
    if constexpr (kDigit == 0) {
      return trits.first;
    } else if constexpr (kInPlace) {
      return field_in_place<2, 2 * (kDigit - 1)>(trits.others);
    } else {
      return field<2, 2 * (kDigit - 1)>(trits.others);
    }
  }
#else
  // Multiplied by three, a byte carries its next trit out of its top. What is kept is one less than the
  // byte (but not less than zero): the averages, which round up, then find where the carry changes.
  struct TritTables {};
  struct Trits {
    Bytes rest;
  };
  BITQWEN_LANES TritTables load_trits() { return {}; }
  BITQWEN_LANES Trits open_trits(const TritTables&, Bytes v) {
    return {_mm512_subs_epu8(v, _mm512_set1_epi8(1))};
  }
  template <int kDigit, bool kInPlace>
  BITQWEN_LANES Bytes trit(Trits& trits) {
    const Bytes rest = trits.rest;
    const Bytes code = field<2, 6>(_mm512_avg_epu8(rest, _mm512_avg_epu8(rest, _mm512_setzero_si512())));
    if constexpr (kDigit < 4) {
      const Bytes twice = _mm512_add_epi8(rest, _mm512_add_epi8(rest, _mm512_set1_epi8(2)));
      trits.rest = _mm512_add_epi8(rest, twice);
    }
    return code;
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
        tables.dims[dim][i] = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
      }
    }
    return tables;
  }
  /// Bit kFrom of every byte to its bit 7; the other bits are anything.
  template <int kFrom>
  BITQWEN_LANES Bytes to_top(Bytes v) {
    return kFrom == 7 ? v : _mm512_slli_epi16(v, 7 - kFrom);
  }
  /// 63 where bit kFrom is not set, 0 where it is: a shuffle gives 0 for an index whose top bit is set.
  template <int kFrom>
  BITQWEN_LANES Bytes flip(Bytes v) {
    return _mm512_shuffle_epi8(_mm512_set1_epi8(63), to_top<kFrom>(v));
  }
  /// The points of four codes a row: low bits at kLowAt of `low`, higher ones at kHighAt of `high`.
  template <int kHighBits, int kLowAt, int kHighAt>
  BITQWEN_LANES void points(const PointTables& tables, Bytes low, Bytes high, Bytes (&out)[2]) {
    const Bytes index = field<4, kLowAt>(low);
    for (int dim = 0; dim < 2; ++dim) {
      out[dim] = _mm512_shuffle_epi8(tables.dims[dim][0], index);
      if constexpr (kHighBits == 2) {
        const __mmask64 upper = _mm512_movepi8_mask(to_top<kHighAt>(high));
        out[dim] = _mm512_mask_shuffle_epi8(out[dim], upper, tables.dims[dim][1], index);
      }
    }
    if constexpr (kHighBits > 0) {
      const Bytes mask = flip<kHighAt + kHighBits - 1>(high);
      for (int dim = 0; dim < 2; ++dim) out[dim] = _mm512_xor_si512(out[dim], mask);
    }
  }
#endif

  BITQWEN_LANES Ints zero_ints() { return _mm512_setzero_si512(); }
  BITQWEN_LANES Ints broadcast_int(const int32_t* p) { return _mm512_set1_epi32(*p); }
  BITQWEN_LANES Ints add16(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
  BITQWEN_LANES Ints add32(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  template <int kShift>
  BITQWEN_LANES Ints shift_left(Ints a) {
    return _mm512_slli_epi32(a, kShift);
  }
  template <int kShift>
  BITQWEN_LANES Ints shift_right(Ints a) {
    return _mm512_srai_epi32(a, kShift);
  }
  BITQWEN_LANES Ints pair_products(Bytes codes, Quad x) { return _mm512_maddubs_epi16(codes, x); }
  BITQWEN_LANES Ints widen_pairs(Ints a) { return _mm512_madd_epi16(a, _mm512_set1_epi16(1)); }
  BITQWEN_LANES Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }

  BITQWEN_LANES Floats zero() { return _mm512_setzero_ps(); }
  BITQWEN_LANES Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  BITQWEN_LANES void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
  BITQWEN_LANES Floats broadcast(const float* p) { return _mm512_set1_ps(*p); }
  BITQWEN_LANES Floats from_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  BITQWEN_LANES Floats from_bfloat16(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  BITQWEN_LANES Floats from_u8(const uint8_t* p) {
    return to_floats(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_LANES Floats from_s8(const uint8_t* p) {
    return to_floats(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_LANES Floats add_constant(Floats a, float constant) {
    return _mm512_add_ps(a, _mm512_set1_ps(constant));
  }
  BITQWEN_LANES Floats negate(Floats a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
  BITQWEN_LANES Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  BITQWEN_LANES Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#undef BITQWEN_LANES
};

struct V {
  using Lanes = Lanes512;
  template <class R, int kBits, int kColumns, int kPlaces>
  using Dots = ColumnDots<R, kBits, kColumns, kPlaces>;
  static constexpr int kTileColumns = 8;
#if defined(__AVX512VBMI__)
  static constexpr bool kTritsInPlace = true;
#else
  static constexpr bool kTritsInPlace = false;
#endif
  static constexpr int registers(int) { return 1; }
#if defined(__AVX512VNNI__)
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
