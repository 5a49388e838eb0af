// Intel's intrinsics as SIMDe computes them, in portable C, for tests of instruction sets that a CPU lacks.
// Found instead of the compiler's header by the targets that put this folder first.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#define SIMDE_NO_INLINE  // calls compile in seconds, inlined bodies in many minutes
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace bitqwen::emulated {

/// out[i] = operation(in[i]) for the lanes of registers.
template <class Out, class To, class From, class In, class Operation>
inline Out each_lane(const In& in, Operation operation) {
  constexpr int kLanes = sizeof(Out) / sizeof(To);
  static_assert(kLanes * sizeof(From) <= sizeof(In));
  From from[kLanes];
  To to[kLanes];
  std::memcpy(from, &in, sizeof from);
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<To>(operation(from[i]));
  Out out;
  std::memcpy(&out, to, sizeof out);
  return out;
}

// SIMDe's is a product and a sum, rounded twice.
template <class Floats>
inline Floats fma(const Floats& a, const Floats& b, const Floats& c) {
  constexpr int kLanes = sizeof(Floats) / sizeof(float);
  float x[kLanes], y[kLanes], z[kLanes];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  Floats out;
  std::memcpy(&out, z, sizeof out);
  return out;
}

}  // namespace bitqwen::emulated

#undef _mm256_fmadd_ps
#undef _mm512_fmadd_ps
#define _mm256_fmadd_ps(a, b, c) bitqwen::emulated::fma<__m256>(a, b, c)
#define _mm512_fmadd_ps(a, b, c) bitqwen::emulated::fma<__m512>(a, b, c)

// What SIMDe 0.7.4 does not have.
inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
  return bitqwen::emulated::each_lane<__m512i, int32_t, uint8_t>(a, [](uint8_t v) { return v; });
}
inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
  return bitqwen::emulated::each_lane<__m512i, int32_t, int8_t>(a, [](int8_t v) { return v; });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return bitqwen::emulated::each_lane<__m512i, int32_t, uint16_t>(a, [](uint16_t v) { return v; });
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  return bitqwen::emulated::each_lane<__m512, float, int32_t>(
      a, [](int32_t v) { return static_cast<float>(v); });
}
inline __m512i _mm512_srai_epi32(__m512i a, unsigned count) {
  return bitqwen::emulated::each_lane<__m512i, int32_t, int32_t>(a, [&](int32_t v) { return v >> count; });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
  return bitqwen::emulated::each_lane<__m512, float, uint16_t>(
      a, [](uint16_t v) { return simde_float16_to_float32(simde_uint16_as_float16(v)); });
}
// A macro with parameters takes the comma of a template's arguments for its own.
#undef _mm256_or_si256
#define _mm256_or_si256 simde_mm256_or_si256
#undef _mm512_madd_epi16  // SIMDe 0.7.4 has its alias with the parameters of the masked one
#define _mm512_madd_epi16 simde_mm512_madd_epi16
using __mmask64 = simde__mmask64;
#define _mm256_dpbusd_avx_epi32(sums, codes, x) _mm256_dpbusd_epi32(sums, codes, x)
#if !defined(_mm_prefetch)
#define _mm_prefetch(p, hint) ((void)(p))
#endif
#if !defined(_MM_HINT_T0)
#define _MM_HINT_T0 0
#endif
