// Ternary products from the second-level cache on one thread: bitnet.cpp's TL2 and I2_S inner loops, rebuilt
// here from the method of its public code with AVX2 as there, and ours. All take turns on the same weights
// and activations, every result is checked against a plain integer product, and the best of the rounds
// counts. Tables of activations are made before the clock starts, on both sides. The clock is the thread's
// CPU time.
//
//   bitnet_loops_benchmark [rounds]
#include <immintrin.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "kernels/multiply.h"
#include "lut-kernels-tl2.h"
#include "measure/random_tensors.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

using namespace bitqwen;

namespace {

constexpr int64_t kRows = 1024, kCols = 1536;  // 1.67 bits: 328 kB; 2 bits: 393 kB
constexpr int kRepeats = 40;                   // of a product in one measurement

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

__m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// ------------------------------------------------------------------------------------------------ TL2
//
// Triples of weights; a table of 16 int16 sums a triple, its low bytes and its high bytes apart. 32 rows by 8
// triples are four vectors of indices, two triples in a byte, and one of signs: bits 15 - 4 j to 12 - 4 j of
// a 16-bit lane belong to vector j: high nibble of the lower and of the upper 8 rows of a 128-bit half, low
// nibble of both. Sums are int16 for 96 columns, then int32 in memory, 256 rows a tile.
struct Tl2 {
  static constexpr int64_t kTileRows = 256, kBlock = 96, kTriples = kBlock / 3;
  std::vector<uint8_t> indices, signs;  // [rows / 256][k / 96][8][16 or 4][32]
  std::vector<uint8_t> tables;          // [k / 3][2][16]
  std::vector<int32_t> sums = std::vector<int32_t>(kRows);

  Tl2(const std::vector<int8_t>& w, const std::vector<int8_t>& x)
      : indices(kRows * kCols / 6), signs(kRows * kCols / 24), tables(kCols / 3 * 32) {
    for (int64_t t = 0; t < kCols / 3; ++t) {
      for (int code = 0; code < 14; ++code) {  // the representatives, whose first weight that is not 0 is 1
        const int up = code + 13;
        const int sum =
            (up / 9 - 1) * x[3 * t] + (up / 3 % 3 - 1) * x[3 * t + 1] + (up % 3 - 1) * x[3 * t + 2];
        tables[32 * t + code] = static_cast<uint8_t>(sum & 255);
        tables[32 * t + 16 + code] = static_cast<uint8_t>(sum >> 8 & 255);
      }
    }
    uint8_t* index = indices.data();
    uint8_t* sign = signs.data();
    for (int64_t tile = 0; tile < kRows; tile += kTileRows) {
      for (int64_t k = 0; k < kCols; k += kBlock) {
        for (int64_t row = tile; row < tile + kTileRows; row += 32) {
          for (int64_t t = 0; t < kTriples; t += 8, index += 128, sign += 32) {
            for (int j = 0; j < 8; ++j) {
              for (int r = 0; r < 32; ++r) {
                const int8_t* triple = w.data() + (row + r) * kCols + k + 3 * (t + j);
                const int number = 9 * triple[0] + 3 * triple[1] + triple[2];
                index[j / 2 * 32 + r] |= static_cast<uint8_t>(std::abs(number) << (j % 2 == 0 ? 4 : 0));
                const int bit = 15 - 4 * (j / 2) - 2 * (j % 2) - r % 16 / 8;
                const int lane = r / 16 * 8 + r % 8;
                if (number < 0) sign[2 * lane + bit / 8] |= static_cast<uint8_t>(1 << bit % 8);
              }
            }
          }
        }
      }
    }
  }

  template <int kNibble, int kPlace>
  static void look_up(__m256i index, __m256i sign, const uint8_t* table, __m256i& lower, __m256i& upper) {
    const __m256i four =
        _mm256_and_si256(kNibble ? _mm256_srli_epi16(index, 4) : index, _mm256_set1_epi8(15));
    const auto half = [&](const uint8_t* p) {
      return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    };
    const __m256i low = _mm256_shuffle_epi8(half(table), four);
    const __m256i high = _mm256_shuffle_epi8(half(table + 16), four);
    const __m256i minus_lower = _mm256_srai_epi16(_mm256_slli_epi16(sign, kPlace), 15);
    const __m256i minus_upper = _mm256_srai_epi16(_mm256_slli_epi16(sign, kPlace + 1), 15);
    const auto negated = [](__m256i v, __m256i minus) {
      return _mm256_xor_si256(_mm256_add_epi16(v, minus), minus);
    };
    lower = _mm256_add_epi16(lower, negated(_mm256_unpacklo_epi8(low, high), minus_lower));
    upper = _mm256_add_epi16(upper, negated(_mm256_unpackhi_epi8(low, high), minus_upper));
  }

  void run() {
    std::fill(sums.begin(), sums.end(), 0);
    const uint8_t* index = indices.data();
    const uint8_t* sign = signs.data();
    for (int64_t tile = 0; tile < kRows; tile += kTileRows) {
      for (int64_t k = 0; k < kCols; k += kBlock) {
        for (int64_t row = tile; row < tile + kTileRows; row += 32) {
          const uint8_t* table = tables.data() + k / 3 * 32;
          __m256i lower = _mm256_setzero_si256(), upper = lower;
          for (int t = 0; t < kTriples / 8; ++t, index += 128, sign += 32, table += 256) {
            const __m256i s = load(sign);
            look_up<1, 0>(load(index), s, table, lower, upper);
            look_up<0, 2>(load(index), s, table + 32, lower, upper);
            look_up<1, 4>(load(index + 32), s, table + 64, lower, upper);
            look_up<0, 6>(load(index + 32), s, table + 96, lower, upper);
            look_up<1, 8>(load(index + 64), s, table + 128, lower, upper);
            look_up<0, 10>(load(index + 64), s, table + 160, lower, upper);
            look_up<1, 12>(load(index + 96), s, table + 192, lower, upper);
            look_up<0, 14>(load(index + 96), s, table + 224, lower, upper);
          }
          const auto widen = [&](__m128i v, int64_t at) {
            __m256i* out = reinterpret_cast<__m256i*>(sums.data() + row + at);
            _mm256_storeu_si256(out, _mm256_add_epi32(load(out), _mm256_cvtepi16_epi32(v)));
          };
          widen(_mm256_castsi256_si128(lower), 0);
          widen(_mm256_castsi256_si128(upper), 8);
          widen(_mm256_extracti128_si256(lower, 1), 16);
          widen(_mm256_extracti128_si256(upper, 1), 24);
        }
      }
    }
  }
  double result(int64_t row) const { return sums[row]; }
};

// ------------------------------------------------------------------------------------------------ I2_S
//
// Row by row: 32 bytes hold 128 weights of one row, codes 0 to 2, columns 32 apart in one byte. Pairs are
// added in int16 to the end of the row (12 blocks here), then across lanes; the sum of the activations is
// taken off.
struct I2s {
  std::vector<uint8_t> codes = std::vector<uint8_t>(kRows * kCols / 4);
  const std::vector<int8_t>& x;
  std::vector<int32_t> sums = std::vector<int32_t>(kRows);
  int32_t of_x = 0;

  I2s(const std::vector<int8_t>& w, const std::vector<int8_t>& activations) : x(activations) {
    for (const int8_t v : x) of_x += v;
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      codes[i / 128 * 32 + i % 32] |= static_cast<uint8_t>((w[i] + 1) << (6 - 2 * (i % 128 / 32)));
    }
  }
  void run() {
    const __m256i mask = _mm256_set1_epi8(3);
    for (int64_t row = 0; row < kRows; ++row) {
      const uint8_t* p = codes.data() + row * kCols / 4;
      __m256i words = _mm256_setzero_si256();
      for (int64_t k = 0; k < kCols; k += 128, p += 32) {
        const __m256i v = load(p);
        const auto products = [&](__m256i shifted, int i) {
          return _mm256_maddubs_epi16(_mm256_and_si256(shifted, mask), load(x.data() + k + 32 * i));
        };
        words = _mm256_add_epi16(words, _mm256_add_epi16(products(_mm256_srli_epi16(v, 6), 0),
                                                         products(_mm256_srli_epi16(v, 4), 1)));
        words =
            _mm256_add_epi16(words, _mm256_add_epi16(products(_mm256_srli_epi16(v, 2), 2), products(v, 3)));
      }
      const __m256i wide = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
      __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
      sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
      sums[row] = _mm_cvtsi128_si32(sum) - of_x;
    }
  }
  double result(int64_t row) const { return sums[row]; }
};

// ------------------------------------------------------------------------------------------------ ours

// Generated TL2 kernels (T3: byte tables), the shape whose K is kCols.
struct T3 {
  int kernel = 0;
  int64_t tile_rows = 0, tile_bytes = 0, vector_rows = 0;
  std::vector<uint8_t> packed;
  std::vector<int8_t> tables;
  std::vector<float> of_x, y = std::vector<float>(kRows);

  T3(const std::vector<int8_t>& w, const std::vector<int8_t>& x) {
    int64_t facts[9] = {};
    for (kernel = 0; kernel < bitqwen_lut_count(); ++kernel) {
      bitqwen_lut_describe(kernel, facts);
      if (facts[1] == kCols && kRows % facts[2] == 0) break;
    }
    if (kernel == bitqwen_lut_count()) {
      std::fprintf(stderr, "no generated kernel for K = %d\n", static_cast<int>(kCols));
      std::exit(1);
    }
    tile_rows = facts[2], vector_rows = facts[4], tile_bytes = facts[7];
    tables.resize(facts[8]);
    of_x.assign(kCols / facts[5], 1.0f);
    packed.resize(kRows / tile_rows * tile_bytes);
    const std::vector<uint16_t> ones(tile_rows * (kCols / facts[6]), 0x3c00);
    for (int64_t t = 0; t < kRows / tile_rows; ++t) {
      bitqwen_lut_pack_tile(kernel, w.data() + t * tile_rows * kCols, ones.data(),
                            packed.data() + t * tile_bytes);
    }
    bitqwen_lut_prepare(kernel, x.data(), tables.data());
  }
  void run() {
    for (int64_t t = 0; t < kRows / tile_rows; ++t) {
      bitqwen_lut_multiply_tile(kernel, packed.data() + t * tile_bytes, tables.data(), of_x.data(),
                                y.data() + t * tile_rows, 0, tile_rows / vector_rows);
    }
  }
  double result(int64_t row) const { return y[row]; }
};

// The built-in kernels of one instruction set, two bits a weight or five weights a byte.
struct Builtin {
  PackedMatrix w;
  ActivationBatch batch{1, kCols};
  Isa isa;
  std::vector<float> y = std::vector<float>(kRows);

  Builtin(Isa set, TernaryLayout layout, const std::vector<int8_t>& weights, const std::vector<int8_t>& x)
      : w(pack(layout, weights)), isa(set) {
    set_isa(isa);
    batch.start(1, kCols, w.activation_group());
    const std::vector<float> values(x.begin(), x.end());
    batch.set(0, values.data());
  }
  static PackedMatrix pack(TernaryLayout layout, const std::vector<int8_t>& weights) {
    // TQ2_0: 64 bytes of codes, 128 columns in 32 bytes as in I2_S but upwards, and d.
    std::vector<uint8_t> bytes(kRows * kCols / 256 * 66);
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      bytes[i / 256 * 66 + i % 256 / 128 * 32 + i % 32] |=
          static_cast<uint8_t>((weights[i] + 1) << 2 * (i % 128 / 32));
    }
    for (size_t block = 0; block < bytes.size(); block += 66) bytes[block + 65] = 0x3c;  // 1.0
    ThreadPool pool(1);
    return PackedMatrix::pack(
        {.name = "w", .type = gguf::TensorType::kTQ2_0, .rows = kRows, .cols = kCols, .bytes = bytes}, pool,
        layout);
  }
  void run() {
    set_isa(isa);
    multiply(w, batch, y.data(), kRows, 0, kRows);
  }
  double result(int64_t row) const { return y[row]; }
};

struct Side {
  std::string name;
  std::function<void()> run;
  std::function<double(int64_t)> result;
  double best = 1e9;
};

template <class T>
Side side(const std::string& name, T& product) {
  return {name, [&] { product.run(); }, [&](int64_t row) { return product.result(row); }};
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = std::max(1, argc > 1 ? std::atoi(argv[1]) : 50);
  measure::Random random(1);
  std::vector<int8_t> w(kRows * kCols), x(kCols);  // [kRows, kCols], [kCols]
  for (int8_t& v : w) v = static_cast<int8_t>(random.below(3) - 1);
  for (int8_t& v : x) v = static_cast<int8_t>(random.below(255) - 127);
  for (int64_t k = 0; k < kCols; k += 128) x[k] = 127;  // a scale of 1 for every group

  Tl2 tl2(w, x);
  I2s i2s(w, x);
  T3 t3(w, x);
  std::vector<std::unique_ptr<Builtin>> builtin;
  std::vector<Side> sides = {side("bitnet.cpp's TL2 loop (AVX2)", tl2),
                             side("bitnet.cpp's I2_S loop (AVX2)", i2s), side("T3, generated (AVX2)", t3)};
  for (const Isa isa : usable_isas()) {
    if (isa == Isa::kScalar) continue;
    for (const TernaryLayout layout : {TernaryLayout::kTwoBits, TernaryLayout::kFiveInByte}) {
      builtin.push_back(std::make_unique<Builtin>(isa, layout, w, x));
      sides.push_back(side(
          (layout == TernaryLayout::kTwoBits ? "W2, " : "five trits a byte, ") + std::string(isa_name(isa)),
          *builtin.back()));
    }
  }
  for (Side& s : sides) {
    s.run();
    for (int64_t r = 0; r < kRows; ++r) {
      int32_t expected = 0;
      for (int64_t k = 0; k < kCols; ++k) expected += w[r * kCols + k] * x[k];
      if (s.result(r) != expected) {
        std::fprintf(stderr, "%s, row %d: %g instead of %d\n", s.name.c_str(), static_cast<int>(r),
                     s.result(r), expected);
        return 1;
      }
    }
  }
  for (int round = 0; round < rounds; ++round) {
    for (Side& s : sides) {
      s.run();  // into the cache
      const double start = now();
      for (int i = 0; i < kRepeats; ++i) s.run();
      s.best = std::min(s.best, (now() - start) / kRepeats);
    }
  }
  std::printf("%d x %d, one thread, best of %d rounds\n", static_cast<int>(kRows), static_cast<int>(kCols),
              rounds);
  std::printf("%-32s | %10s | %8s | %8s\n", "", "Gweights/s", "of TL2", "of I2_S");
  for (const Side& s : sides) {
    std::printf("%-32s | %10.1f | %7.2fx | %7.2fx\n", s.name.c_str(), kRows * kCols / s.best * 1e-9,
                sides[0].best / s.best, sides[1].best / s.best);
  }
  return 0;
}
