// Rounding activations with AVX2, for every x86 instruction set above it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/simd_inline.h"

namespace bitqwen {
namespace {

BITQWEN_INLINE uint32_t largest_magnitude(const float* values, int count) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i largest = _mm256_setzero_si256();
  for (int j = 0; j < count; j += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + j));
    largest = _mm256_max_epu32(largest, _mm256_and_si256(bits, mask));
  }
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

BITQWEN_INLINE void quantize_32(const float* values, float inverse, int8_t* codes, int32_t* sums) {
  const __m256 factor = _mm256_set1_ps(inverse);
  const auto round = [&](int i) BITQWEN_INLINE_LAMBDA {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8 * i), factor));
  };
  const __m256i words_a = _mm256_packs_epi32(round(0), round(1));
  const __m256i words_b = _mm256_packs_epi32(round(2), round(3));
  // The packs work within 128-bit halves: put the groups of four back in order.
  const __m256i packed = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words_a, words_b),
                                                     _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_store_si256(reinterpret_cast<__m256i*>(codes), packed);
  const __m256i biased = _mm256_xor_si256(packed, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i eights = _mm256_sad_epu8(biased, _mm256_setzero_si256());
  const __m256i sixteens = _mm256_add_epi64(eights, _mm256_shuffle_epi32(eights, 0x4e));
  sums[0] = _mm_cvtsi128_si32(_mm256_castsi256_si128(sixteens)) - 16 * 128;
  sums[1] = _mm_cvtsi128_si32(_mm256_extracti128_si256(sixteens, 1)) - 16 * 128;
}

}  // namespace
}  // namespace bitqwen
