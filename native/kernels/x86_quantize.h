// Activations to int8 with AVX2, for every x86 instruction set above it: the bits of the scalar kernel.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "kernels/activations.h"

namespace bitqwen {
namespace {

BITQWEN_INLINE uint32_t largest_lane(__m256i v) {
  __m128i m = _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(m));
}

// 32 codes, and the sums of the first and the last 16.
BITQWEN_INLINE void quantize_32(const float* values, __m256 inverse, uint8_t* codes, int32_t* sums) {
  const auto round = [&](int i) BITQWEN_INLINE_LAMBDA {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values + 8 * i), inverse));
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

void quantize_activations(const float* values, ActivationBatch::Layout& x, int column) {
  const int begin = x.tile_begin(column);
  const int n = x.tile_size(begin);
  const int i = column - begin;
  const int64_t groups = x.groups();
  int8_t* codes = x.codes + begin * x.k + 4 * i;
  const int64_t first = begin * groups + i;
  const __m256i magnitude_mask = _mm256_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < groups; ++g, values += x.group) {
    __m256i magnitudes = _mm256_setzero_si256();
    for (int j = 0; j < x.group; j += 8) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + j));
      magnitudes = _mm256_max_epu32(magnitudes, _mm256_and_si256(bits, magnitude_mask));
    }
    const uint32_t largest = largest_lane(magnitudes);
    float magnitude;
    std::memcpy(&magnitude, &largest, sizeof magnitude);
    const bool finite = largest < 0x7f800000;
    const bool zero = !finite || magnitude < kTinyActivation;
    const float inverse = zero ? 0.0f : 127.0f / magnitude;
    const float scale = !finite ? __builtin_nanf("") : zero ? 0.0f : magnitude / 127.0f;
    const __m256 inverses = _mm256_set1_ps(inverse);
    int32_t total = 0;
    for (int j = 0; j < x.group; j += 32) {
      alignas(32) uint8_t rounded[32];
      int32_t sums[2] = {0, 0};
      if (zero) {  // 0 * infinity is no zero
        std::memset(rounded, 0, sizeof rounded);
      } else {
        quantize_32(values + j, inverses, rounded, sums);
      }
      if (n == 1) {
        std::memcpy(codes, rounded, 32);
      } else {
        for (int s = 0; s < 8; ++s) std::memcpy(codes + 4 * s * n, rounded + 4 * s, 4);
      }
      codes += 32 * n;
      total += sums[0] + sums[1];
      if (x.has_halves()) {
        for (int h = 0; h < 2; ++h) {
          const int64_t at = begin * 2 * groups + (2 * g + h) * n + i;
          x.half_sums[at] = static_cast<float>(sums[h]);
          x.half_offsets[at] = -sums[h];
        }
      }
    }
    x.scales[first + g * n] = scale;
    x.sums[first + g * n] = static_cast<float>(total);
    x.offsets[first + g * n] = -total;
  }
}

}  // namespace
}  // namespace bitqwen
