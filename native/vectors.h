// Sixteen floats as one value: compiled anew with each instruction set's flags, so all names are local
// to the including file. The compiler turns the arithmetic into whatever registers there are.
#pragma once

#include <cstdint>
#include <cstring>

#include "half.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bitqwen {
namespace {

constexpr int kLanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
inline Floats splat(float x) { return Floats{} + x; }

inline Floats load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#else
  alignas(64) float out[kLanes];
#if defined(__F16C__)
  for (int i = 0; i < kLanes; i += 8) {
    _mm256_store_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i))));
  }
#elif defined(__aarch64__)
  for (int i = 0; i < kLanes; i += 4) {
    vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + i))));
  }
#else
  for (int i = 0; i < kLanes; ++i) out[i] = half_to_float(p[i]);
#endif
  return load(out);
#endif
}

inline Floats load_int8(const int8_t* p) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#else
  alignas(64) float out[kLanes];
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<float>(p[i]);
  return load(out);
#endif
}

// Halves onto halves, always in this order, so that a sum does not depend on the instruction set.
inline float sum(Floats v) {
  using Eight = float __attribute__((vector_size(32)));
  using Four = float __attribute__((vector_size(16)));
  Eight upper[2];
  std::memcpy(upper, &v, sizeof v);
  const Eight eight = upper[0] + upper[1];
  Four quarters[2];
  std::memcpy(quarters, &eight, sizeof eight);
  const Four four = quarters[0] + quarters[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

inline float maximum(Floats v) {
  alignas(64) float x[kLanes];
  store(x, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  }
  return x[0];
}

inline Floats maximum(Floats a, Floats b) { return a > b ? a : b; }

// e^x within 2 units in the last place for x in [-87, 88]; 0 below, NaN stays NaN. Range reduction to
// [-ln2/2, ln2/2] and the degree-6 Taylor-minimax polynomial of Cephes' expf.
inline Floats exponential(Floats x) {
  const Floats clamped = x < -87.0f ? splat(-87.0f) : (x > 88.0f ? splat(88.0f) : x);
  const Floats shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Floats n = shifted - 12582912.0f;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const Ints exponent = ((reinterpret_cast<Ints>(shifted) - 0x4b400000) + 127) << 23;
  const Floats result = p * reinterpret_cast<Floats>(exponent);
  return x < -87.0f ? Floats{} : (x == x ? result : x);
}

}  // namespace
}  // namespace bitqwen
