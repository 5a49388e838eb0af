#include "measure/peaks.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <limits>
#include <string>

#include "errors.h"
#include "system/limits.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace bitqwen::measure {
namespace {

#if defined(__x86_64__)
#define BITQWEN_TARGET(features) __attribute__((target(features)))

template <int Streams>
BITQWEN_TARGET("avx2")
uint64_t read_avx2(const uint8_t* data, size_t bytes) {
  const size_t stream = bytes / Streams / 64 * 64;
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (size_t at = 0; at < stream; at += 64) {
    for (int s = 0; s < Streams; ++s) {
      const uint8_t* p = data + s * stream + at;
      _mm_prefetch(reinterpret_cast<const char*>(p) + (Streams == 1 ? 4096 : 2048), _MM_HINT_T0);
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

// One function for each way to multiply and add bytes: `step(n)` does it into sum[n].
#define BITQWEN_DOTS(name, features, vector, ones, zero, step) \
  BITQWEN_TARGET(features) double name(int64_t rounds) {       \
    vector sum[12];                                            \
    for (vector& s : sum) s = zero;                            \
    const vector a = ones;                                     \
    for (int64_t i = 0; i < rounds; ++i) {                     \
      BITQWEN_CHAINS(step)                                     \
    }                                                          \
    return static_cast<double>(rounds) * 12 * sizeof(vector);  \
  }

#define BITQWEN_VNNI_512(n) asm volatile("vpdpbusd %1, %1, %0" : "+v"(sum[n]) : "v"(a));
#define BITQWEN_VNNI_256(n) asm volatile("%{vex%} vpdpbusd %1, %1, %0" : "+x"(sum[n]) : "x"(a));
#define BITQWEN_WORDS_512(n)                                   \
  {                                                            \
    __m512i t;                                                 \
    asm volatile("vpmaddubsw %1, %1, %0" : "=v"(t) : "v"(a));  \
    asm volatile("vpaddw %1, %0, %0" : "+v"(sum[n]) : "v"(t)); \
  }
#define BITQWEN_WORDS_256(n)                                   \
  {                                                            \
    __m256i t;                                                 \
    asm volatile("vpmaddubsw %1, %1, %0" : "=x"(t) : "x"(a));  \
    asm volatile("vpaddw %1, %0, %0" : "+x"(sum[n]) : "x"(t)); \
  }

BITQWEN_DOTS(dots_avx512vnni, "avx512f,avx512vnni", __m512i, _mm512_set1_epi8(1), _mm512_setzero_si512(),
             BITQWEN_VNNI_512)
BITQWEN_DOTS(dots_avx512, "avx512f,avx512bw", __m512i, _mm512_set1_epi8(1), _mm512_setzero_si512(),
             BITQWEN_WORDS_512)
BITQWEN_DOTS(dots_avxvnni, "avx2,avxvnni", __m256i, _mm256_set1_epi8(1), _mm256_setzero_si256(),
             BITQWEN_VNNI_256)
BITQWEN_DOTS(dots_avx2, "avx2", __m256i, _mm256_set1_epi8(1), _mm256_setzero_si256(), BITQWEN_WORDS_256)
#elif defined(__aarch64__)
__attribute__((target("arch=armv8.2-a+dotprod"))) double dots_neon(int64_t rounds) {
  int32x4_t sum[12] = {};
  const int8x16_t a = vdupq_n_s8(1);
  for (int64_t i = 0; i < rounds; ++i) {
    for (int32x4_t& s : sum) asm volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(s) : "w"(a));
  }
  return static_cast<double>(rounds) * 12 * 16;
}
#endif

template <int Streams>
uint64_t read_streams(const uint8_t* data, size_t bytes) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return read_avx2<Streams>(data, bytes);
#endif
  const size_t stream = bytes / Streams / 64 * 64;
  uint64_t sum = 0;
  for (size_t at = 0; at < stream; at += 64) {
    for (int s = 0; s < Streams; ++s) {
      uint64_t words[8];
      std::memcpy(words, data + s * stream + at, sizeof words);
      for (const uint64_t w : words) sum ^= w;
    }
  }
  return sum;
}

}  // namespace

uint64_t read_all(const uint8_t* data, size_t bytes, Streams streams) {
  return streams == Streams::kOne ? read_streams<1>(data, bytes) : read_streams<8>(data, bytes);
}

double multiply_adds(int64_t rounds, Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kAvx2: return dots_avx2(rounds);
    case Isa::kAvxVnni: return dots_avxvnni(rounds);
    case Isa::kAvx512: return dots_avx512(rounds);
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Vbmi: return dots_avx512vnni(rounds);
    default: return 0;
  }
#elif defined(__aarch64__)
  return isa == Isa::kNeonDotprod || isa == Isa::kNeonI8mm ? dots_neon(rounds) : 0;
#else
  (void)rounds;
  (void)isa;
  return 0;
#endif
}

namespace {

constexpr int kPiecesPerThread = 4;
constexpr int64_t kLeast = int64_t{1} << 20;
constexpr int64_t kRounds = 1000000;

template <class Body>
double seconds(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Peaks::Peaks(int threads, int64_t bytes) : pool_(threads) {
  if (bytes < kLeast) {
    throw Error(ErrorKind::kArgument, "a pass over " + std::to_string(bytes) + " bytes is too short to time",
                "Read at least " + std::to_string(kLeast) + " bytes.");
  }
  const int64_t available = available_memory();
  if (bytes > available) {
    throw Error(ErrorKind::kResource, "reading " + std::to_string(bytes) + " bytes needs as much memory; " +
                                          std::to_string(available) + " are available");
  }
  const int64_t pieces = int64_t{kPiecesPerThread} * pool_.size();
  piece_ = bytes / pieces / 4096 * 4096 + 4096;
  size_ = static_cast<size_t>(piece_ * pieces);
  void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw Error(ErrorKind::kResource, "the system refuses memory for reading");
#if defined(MADV_HUGEPAGE)
  madvise(memory, size_, MADV_HUGEPAGE);  // without it, the page walks are measured too
#endif
  memory_ = static_cast<uint8_t*>(memory);
  pool_.parallel_for(pieces, 1, [&](int64_t begin, int64_t end, int) {
    std::memset(memory_ + begin * piece_, 1, static_cast<size_t>((end - begin) * piece_));
  });
}

Peaks::~Peaks() { munmap(memory_, size_); }

double Peaks::read_bandwidth() {
  const int64_t pieces = int64_t{kPiecesPerThread} * pool_.size();
  std::atomic<uint64_t> sink{0};
  double quickest = std::numeric_limits<double>::infinity();
  for (const Streams streams : {Streams::kOne, Streams::kEight}) {
    quickest =
        std::min(quickest, seconds([&] {
                   pool_.parallel_for(pieces, 1, [&](int64_t begin, int64_t end, int) {
                     for (int64_t i = begin; i < end; ++i) {
                       sink.fetch_xor(read_all(memory_ + i * piece_, static_cast<size_t>(piece_), streams),
                                      std::memory_order_relaxed);
                     }
                   });
                 }));
  }
  return static_cast<double>(pieces * piece_) / quickest;
}

double Peaks::int8_rate() {
  const Isa isa = current_isa();
  std::atomic<double> done{0};
  const double time = seconds([&] {
    pool_.parallel_for(pool_.size(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) done.fetch_add(multiply_adds(kRounds, isa));
    });
  });
  return done.load() / time;
}

}  // namespace bitqwen::measure
