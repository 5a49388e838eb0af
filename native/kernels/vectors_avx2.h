// 16 rows in two 256-bit registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd_inline.h"

namespace bitqwen {
namespace {

struct Bytes256 {
  __m256i v[2];  // rows 0 to 7, rows 8 to 15
};
struct Floats256 {
  __m256 v[2];
};

BITQWEN_INLINE Floats256 floats_from_ints(__m256i a, __m256i b) {
  return {{_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)}};
}

#if defined(BITQWEN_DPBUSD256)
// Sums over 4 columns a step, with the dot-product instruction.
template <int kBits>
struct Dot256 {
  __m256i sums[2];

  BITQWEN_INLINE void start() { sums[0] = sums[1] = _mm256_setzero_si256(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t* minus_sum) {
    constexpr int kShift = __builtin_ctz(kOffset);
    sums[0] = sums[1] = _mm256_slli_epi32(_mm256_set1_epi32(*minus_sum), kShift);
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t* minus_sum, int offset) {
    sums[0] = sums[1] = _mm256_mullo_epi32(_mm256_set1_epi32(*minus_sum), _mm256_set1_epi32(offset));
  }
  template <int kStep>
  BITQWEN_INLINE void add(const Bytes256& codes, __m256i x) {
    sums[0] = BITQWEN_DPBUSD256(sums[0], codes.v[0], x);
    sums[1] = BITQWEN_DPBUSD256(sums[1], codes.v[1], x);
  }
  template <int kShift>
  BITQWEN_INLINE void add_shifted(const Dot256& other) {
    for (int i = 0; i < 2; ++i) sums[i] = _mm256_add_epi32(sums[i], _mm256_srai_epi32(other.sums[i], kShift));
  }
  BITQWEN_INLINE Floats256 value() const { return floats_from_ints(sums[0], sums[1]); }
};
#else
// Pairs of products are summed in int16: kLimit steps fit before they must be widened.
template <int kBits>
struct Dot256 {
  static constexpr int kLimit = 32767 / (2 * 127 * ((1 << kBits) - 1));
  __m256i sums[2];
  __m256i pairs[2];

  BITQWEN_INLINE void start() { sums[0] = sums[1] = pairs[0] = pairs[1] = _mm256_setzero_si256(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t* minus_sum) {
    start_scaled_offset(minus_sum, kOffset);
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t* minus_sum, int offset) {
    pairs[0] = pairs[1] = _mm256_setzero_si256();
    sums[0] = sums[1] = _mm256_mullo_epi32(_mm256_set1_epi32(*minus_sum), _mm256_set1_epi32(offset));
  }
  template <int kStep>
  BITQWEN_INLINE void add(const Bytes256& codes, __m256i x) {
    for (int i = 0; i < 2; ++i) {
      pairs[i] = _mm256_add_epi16(pairs[i], _mm256_maddubs_epi16(codes.v[i], x));
      if constexpr ((kStep + 1) % kLimit == 0) {
        sums[i] = widened(i);
        pairs[i] = _mm256_setzero_si256();
      }
    }
  }
  BITQWEN_INLINE __m256i widened(int i) const {
    return _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs[i], _mm256_set1_epi16(1)));
  }
  BITQWEN_INLINE Floats256 value() const { return floats_from_ints(widened(0), widened(1)); }
};

// Eight bits overflow int16 as they stand: with the code's sign moved to the activation they just fit.
template <>
struct Dot256<8> {
  __m256i sums[2];

  BITQWEN_INLINE void start() { sums[0] = sums[1] = _mm256_setzero_si256(); }
  template <int kOffset>
  BITQWEN_INLINE void start_offset(const int32_t*) {
    start();  // the code is made signed, so there is no offset left
  }
  BITQWEN_INLINE void start_scaled_offset(const int32_t*, int) { start(); }
  template <int kStep>
  BITQWEN_INLINE void add(const Bytes256& codes, __m256i x) {
    for (int i = 0; i < 2; ++i) {
      const __m256i code = _mm256_xor_si256(codes.v[i], _mm256_set1_epi8(static_cast<char>(0x80)));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(code), _mm256_sign_epi8(x, code));
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
  }
  BITQWEN_INLINE Floats256 value() const { return floats_from_ints(sums[0], sums[1]); }
};
#endif

struct V {
#define BITQWEN_V static BITQWEN_INLINE
  using Bytes = Bytes256;
  using Floats = Floats256;
  using Quad = __m256i;
  template <int kBits>
  using Dot = Dot256<kBits>;
  static constexpr int kTileColumns = 6;
  static constexpr int kPanelBlocks = 1;
  static constexpr int kFewColumns = 6;
#if defined(BITQWEN_DPBUSD256)
  static constexpr bool kUsesBits = false;
  static constexpr bool kSumsInPlace = true;
#else
  static constexpr bool kUsesBits = true;
  static constexpr bool kSumsInPlace = false;
#endif

  BITQWEN_V Bytes load(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m256i*>(p);
    return {{_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)}};
  }
  BITQWEN_V void store(uint8_t* p, const Bytes& a) {
    auto* to = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(to, a.v[0]);
    _mm256_storeu_si256(to + 1, a.v[1]);
  }
  BITQWEN_V void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

  /// Bits [kFrom, kFrom + kBits) of every byte, moved to bit 0.
  template <int kBits, int kFrom>
  BITQWEN_V Bytes field(Bytes a) {
    for (__m256i& v : a.v) {
      if constexpr (kFrom != 0) v = _mm256_srli_epi16(v, kFrom);
      if constexpr (kBits != 8)
        v = _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>((1 << kBits) - 1)));
    }
    return a;
  }
  /// The same bits, left where they are.
  template <int kBits, int kFrom>
  BITQWEN_V Bytes field_in_place(Bytes a) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kFrom));
    for (__m256i& v : a.v) v = _mm256_and_si256(v, mask);
    return a;
  }
  /// low, and the same field of `a` moved to bit kTo.
  template <int kBits, int kFrom, int kTo>
  BITQWEN_V Bytes with_field(Bytes low, const Bytes& a) {
    const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << kBits) - 1) << kTo));
    for (int i = 0; i < 2; ++i) {
      __m256i v = a.v[i];
      if constexpr (kFrom > kTo) v = _mm256_srli_epi16(v, kFrom - kTo);
      if constexpr (kFrom < kTo) v = _mm256_slli_epi16(v, kTo - kFrom);
      low.v[i] = _mm256_or_si256(low.v[i], _mm256_and_si256(v, mask));
    }
    return low;
  }

  BITQWEN_V Floats zero() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
  BITQWEN_V Floats load_floats(const float* p) { return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}}; }
  BITQWEN_V void store(float* p, const Floats& a) {
    _mm256_storeu_ps(p, a.v[0]);
    _mm256_storeu_ps(p + 8, a.v[1]);
  }
  BITQWEN_V Floats broadcast(const float* p) { return {{_mm256_broadcast_ss(p), _mm256_broadcast_ss(p)}}; }
  BITQWEN_V Floats from_half(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    return {{_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from + 1))}};
  }
  BITQWEN_V Floats from_bfloat16(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    const auto widen = [](__m128i v) BITQWEN_INLINE_LAMBDA {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
    };
    return {{widen(_mm_loadu_si128(from)), widen(_mm_loadu_si128(from + 1))}};
  }
  BITQWEN_V Floats from_u8(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    return floats_from_ints(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from)),
                            _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))));
  }
  BITQWEN_V Floats from_s8(const uint8_t* p) {
    const auto* from = reinterpret_cast<const __m128i*>(p);
    return floats_from_ints(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from)),
                            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8))));
  }
  BITQWEN_V Floats add_constant(const Floats& a, float constant) {
    const __m256 b = _mm256_set1_ps(constant);
    return {{_mm256_add_ps(a.v[0], b), _mm256_add_ps(a.v[1], b)}};
  }
  BITQWEN_V Floats negate(const Floats& a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {{_mm256_xor_ps(a.v[0], sign), _mm256_xor_ps(a.v[1], sign)}};
  }
  BITQWEN_V Floats mul(const Floats& a, const Floats& b) {
    return {{_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}};
  }
  BITQWEN_V Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return {{_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}};
  }

  BITQWEN_V Quad quad(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
  }
#undef BITQWEN_V
};

}  // namespace
}  // namespace bitqwen
