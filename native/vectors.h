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

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kWidth = 4, kRegisters = 32;
#else
constexpr int kWidth = 4, kRegisters = 16;
#endif
/// One register of floats: what gcc compares lane by lane in Floats, it compares at once in these.
using Wide = float __attribute__((vector_size(kWidth * 4)));
using WideInts = int32_t __attribute__((vector_size(kWidth * 4)));

inline Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

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

inline Wide load_wide(const float* p) {
  Wide v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store_wide(float* p, Wide v) { std::memcpy(p, &v, sizeof v); }
inline Wide splat_wide(float x) { return Wide{} + x; }

inline Wide maximum(Wide a, Wide b) { return a > b ? a : b; }

inline float maximum(Wide v) {
  float highest = v[0];
  for (int i = 1; i < kWidth; ++i) highest = v[i] > highest ? v[i] : highest;
  return highest;
}

// e^x within 2 units in the last place for x in [-87, 88]; 0 below, NaN stays NaN. Range reduction to
// [-ln2/2, ln2/2] and the degree-6 Taylor-minimax polynomial of Cephes' expf.
inline Wide exponential(Wide x) {
  const Wide clamped = x < -87.0f ? splat_wide(-87.0f) : (x > 88.0f ? splat_wide(88.0f) : x);
  const Wide shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Wide n = shifted - 12582912.0f;
  const Wide r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Wide p = splat_wide(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const WideInts exponent = ((reinterpret_cast<WideInts>(shifted) - 0x4b400000) + 127) << 23;
  const Wide result = p * reinterpret_cast<Wide>(exponent);
  return x < -87.0f ? Wide{} : (x == x ? result : x);
}

}  // namespace
}  // namespace bitqwen
