// 16 rows in one 512-bit register.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd_inline.h"

namespace bitqwen {
namespace {

// Sums over 4 columns a step, for codes of kBits.
#if defined(__AVX512VNNI__)
template <int kBits>
struct Dot512 {
  __m512i sums;
  BITQWEN_INLINE void start() { sums = _mm512_setzero_si512(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t* minus_sum) {
    constexpr int kShift = __builtin_ctz(kOffset);
    sums = _mm512_slli_epi32(_mm512_set1_epi32(*minus_sum), kShift);
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t* minus_sum, int offset) {
    sums = _mm512_mullo_epi32(_mm512_set1_epi32(*minus_sum), _mm512_set1_epi32(offset));
  }
  template <int kStep>
  BITQWEN_INLINE void add(__m512i codes, __m512i x) {
    sums = _mm512_dpbusd_epi32(sums, codes, x);
  }
  template <int kShift>
  BITQWEN_INLINE void add_shifted(const Dot512& other) {
    sums = _mm512_add_epi32(sums, _mm512_srai_epi32(other.sums, kShift));
  }
  BITQWEN_INLINE __m512 value() const { return _mm512_cvtepi32_ps(sums); }
};
#else
// Pairs of products are summed in int16: kLimit steps fit before they must be widened.
template <int kBits>
struct Dot512 {
  static constexpr int kLimit = 32767 / (2 * 127 * ((1 << kBits) - 1));
  __m512i sums;
  __m512i pairs;
  BITQWEN_INLINE void start() { sums = pairs = _mm512_setzero_si512(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t* minus_sum) {
    start_scaled_offset(minus_sum, kOffset);
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t* minus_sum, int offset) {
    pairs = _mm512_setzero_si512();
    sums = _mm512_mullo_epi32(_mm512_set1_epi32(*minus_sum), _mm512_set1_epi32(offset));
  }
  template <int kStep>
  BITQWEN_INLINE void add(__m512i codes, __m512i x) {
    pairs = _mm512_add_epi16(pairs, _mm512_maddubs_epi16(codes, x));
    if constexpr ((kStep + 1) % kLimit == 0) {
      sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
      pairs = _mm512_setzero_si512();
    }
  }
  BITQWEN_INLINE __m512 value() const {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
  }
};
// Eight bits overflow int16 as they stand. Even and odd bytes widen to int16 and multiply exactly.
template <>
struct Dot512<8> {
  __m512i sums;
  BITQWEN_INLINE void start() { sums = _mm512_setzero_si512(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t* minus_sum) {
    start_scaled_offset(minus_sum, kOffset);
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t* minus_sum, int offset) {
    sums = _mm512_mullo_epi32(_mm512_set1_epi32(*minus_sum), _mm512_set1_epi32(offset));
  }
  template <int kStep>
  BITQWEN_INLINE void add(__m512i codes, __m512i x) {
    const __m512i even = _mm512_and_si512(codes, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(codes, 8);
    const __m512i x_even = _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8), x_odd = _mm512_srai_epi16(x, 8);
    sums = _mm512_add_epi32(sums,
                            _mm512_add_epi32(_mm512_madd_epi16(even, x_even), _mm512_madd_epi16(odd, x_odd)));
  }
  BITQWEN_INLINE __m512 value() const { return _mm512_cvtepi32_ps(sums); }
};
#endif

struct V {
#define BITQWEN_V static BITQWEN_INLINE
  using Bytes = __m512i;
  using Floats = __m512;
  using Quad = __m512i;
  static constexpr int kTileColumns = 8;
  static constexpr int kPanelBlocks = 2;
  static constexpr int kFewColumns = 64;
#if defined(__AVX512VNNI__)
  static constexpr bool kUsesBits = false;
  static constexpr bool kSumsInPlace = true;
#else
  static constexpr bool kUsesBits = true;
  static constexpr bool kSumsInPlace = false;
#endif

  BITQWEN_V Bytes load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  BITQWEN_V void store(uint8_t* p, Bytes v) { _mm512_storeu_si512(p, v); }
  BITQWEN_V void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  /// Bits [kFrom, kFrom + kBits) of every byte, moved to bit 0.
  template <int kBits, int kFrom>
  BITQWEN_V Bytes field(Bytes v) {
    if constexpr (kFrom != 0) v = _mm512_srli_epi16(v, kFrom);
    return kBits == 8 ? v : _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>((1 << kBits) - 1)));
  }
  /// The same bits, left where they are.
  template <int kBits, int kFrom>
  BITQWEN_V Bytes field_in_place(Bytes v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kFrom)));
  }
  /// low, and the same field of `v` moved to bit kTo.
  template <int kBits, int kFrom, int kTo>
  BITQWEN_V Bytes with_field(Bytes low, Bytes v) {
    if constexpr (kFrom > kTo) v = _mm512_srli_epi16(v, kFrom - kTo);
    if constexpr (kFrom < kTo) v = _mm512_slli_epi16(v, kTo - kFrom);
    const Bytes mask = _mm512_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo));
    return _mm512_ternarylogic_epi32(low, v, mask, 0xf8);  // low | (v & mask)
  }

  BITQWEN_V Floats zero() { return _mm512_setzero_ps(); }
  BITQWEN_V Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
  BITQWEN_V void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
  BITQWEN_V Floats broadcast(const float* p) { return _mm512_set1_ps(*p); }
  BITQWEN_V Floats from_half(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  BITQWEN_V Floats from_bfloat16(const uint8_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  BITQWEN_V Floats from_u8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_V Floats from_s8(const uint8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  BITQWEN_V Floats add_constant(Floats v, float constant) {
    return _mm512_add_ps(v, _mm512_set1_ps(constant));
  }
  BITQWEN_V Floats negate(Floats v) { return _mm512_xor_ps(v, _mm512_set1_ps(-0.0f)); }
  BITQWEN_V Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  BITQWEN_V Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }

  BITQWEN_V Quad quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
  }

  template <int kBits>
  using Dot = Dot512<kBits>;
#undef BITQWEN_V
};

}  // namespace
}  // namespace bitqwen
