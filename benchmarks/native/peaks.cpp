#include "peaks.h"

#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bitqwen::benchmark {
namespace {

constexpr int kStreams = 8;

#if defined(__x86_64__)
#define BITQWEN_TARGET(features) __attribute__((target(features)))

BITQWEN_TARGET("avx2") uint64_t read_avx2(const uint8_t* data, size_t bytes) {
  const size_t stream = bytes / kStreams / 64 * 64;
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t at = 0; at < stream; at += 64) {
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t* p = data + s * stream + at;
      _mm_prefetch(reinterpret_cast<const char*>(p) + 2048, _MM_HINT_T0);
      for (int i = 0; i < 2; ++i) {
        sum[i] = _mm256_xor_si256(sum[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + i));
      }
    }
  }
  const __m256i both = _mm256_xor_si256(sum[0], sum[1]);
  return static_cast<uint64_t>(_mm256_extract_epi64(both, 0) ^ _mm256_extract_epi64(both, 3));
}

// Twelve independent chains hide the latency; the asm keeps the compiler from folding them.
#define BITQWEN_CHAINS(step) \
  step(0) step(1) step(2) step(3) step(4) step(5) step(6) step(7) step(8) step(9) step(10) step(11)

BITQWEN_TARGET("avx512f,avx512vnni") double dots_512(int64_t rounds) {
  __m512i sum[12];
  for (__m512i& s : sum) s = _mm512_setzero_si512();
  const __m512i a = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
#define BITQWEN_STEP(n) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum[n]) : "v"(a));
    BITQWEN_CHAINS(BITQWEN_STEP)
#undef BITQWEN_STEP
  }
  return static_cast<double>(rounds) * 12 * 64;
}

BITQWEN_TARGET("avx2") double dots_avx2(int64_t rounds) {
  __m256i sum[12];
  for (__m256i& s : sum) s = _mm256_setzero_si256();
  const __m256i a = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < rounds; ++i) {
#define BITQWEN_STEP(n)                                        \
  {                                                            \
    __m256i t;                                                 \
    asm volatile("vpmaddubsw %1, %1, %0" : "=x"(t) : "x"(a));  \
    asm volatile("vpaddw %1, %0, %0" : "+x"(sum[n]) : "x"(t)); \
  }
    BITQWEN_CHAINS(BITQWEN_STEP)
#undef BITQWEN_STEP
  }
  return static_cast<double>(rounds) * 12 * 32;
}
#endif

}  // namespace

uint64_t read_all(const uint8_t* data, size_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return read_avx2(data, bytes);
#endif
  const size_t stream = bytes / kStreams / 64 * 64;
  uint64_t sum = 0;
  for (size_t at = 0; at < stream; at += 64) {
    for (int s = 0; s < kStreams; ++s) {
      uint64_t words[8];
      std::memcpy(words, data + s * stream + at, sizeof words);
      for (const uint64_t w : words) sum ^= w;
    }
  }
  return sum;
}

double multiply_adds(int64_t rounds, bool avx2) {
#if defined(__x86_64__)
  if (!avx2 && __builtin_cpu_supports("avx512vnni")) return dots_512(rounds);
  if (__builtin_cpu_supports("avx2")) return dots_avx2(rounds);
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
  int32x4_t sum[12] = {};
  const int8x16_t a = vdupq_n_s8(1);
  for (int64_t i = 0; i < rounds; ++i) {
    for (int32x4_t& s : sum) asm volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(s) : "w"(a));
  }
  return static_cast<double>(rounds) * 12 * 16;
#endif
  (void)rounds;
  (void)avx2;
  return 0;
}

}  // namespace bitqwen::benchmark
