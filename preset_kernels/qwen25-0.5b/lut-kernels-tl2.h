// Look-up-table kernels TL2 (triples and pairs, AVX2) for Qwen2.5-0.5B. Generated, not written: change src/bitqwen/kernels/ and run
//     bitqwen kernels generate 0.5B --output DIR
// y[m] = sum_k w[m, k] x[k], exactly: w in {-1, 0, 1}, x int8 in [-127, 127], y int32.
// clang-format off
#pragma once

#include <cstdint>
#include <cstring>

namespace bitqwen_lut {

// For each group of columns a table of 16 sums v = 31 h + l, split into bytes: l in [-15, 15], h in [-12, 12].
constexpr int64_t kTableBytes = 32;  // 16 l, then 16 h
constexpr int64_t kPrefetchBytes = 2048;

inline void put_entry(int8_t* table, int i, int v) {
  const int h = (v + (v < 0 ? -15 : 15)) / 31;
  table[i] = static_cast<int8_t>(v - 31 * h);
  table[16 + i] = static_cast<int8_t>(h);
}

}  // namespace bitqwen_lut

#if !defined(__AVX2__)
#error "TL2 for AVX2: compile with -mavx2"
#endif
#include <immintrin.h>

namespace bitqwen_lut {

// 32 rows, one in each byte. Look-ups are added as bytes, eight at a time: 8 * 15 fits. Then l + 31 h is
// formed in 16 bits, which hold the up to 10 steps of a block: 10 * 8 * 381 < 32768.
constexpr int64_t kRows = 32;
constexpr int64_t kTripleStepBytes = 5 * kRows;  // 8 triples: four vectors of two indices, one of signs
constexpr int64_t kPairStepBytes = 4 * kRows;    // 8 pairs

inline __m256i table_at(const int8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

struct Words {
  __m256i low = _mm256_setzero_si256();   // rows 0-7, 16-23
  __m256i high = _mm256_setzero_si256();  // rows 8-15, 24-31

  void add(__m256i l, __m256i h) {
    const __m256i weights = _mm256_set1_epi16(31 << 8 | 1);
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(weights, _mm256_unpacklo_epi8(l, h)));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(weights, _mm256_unpackhi_epi8(l, h)));
  }
  void into(int32_t* y) const {
    const __m128i parts[4] = {_mm256_castsi256_si128(low), _mm256_castsi256_si128(high),
                              _mm256_extracti128_si256(low, 1), _mm256_extracti128_si256(high, 1)};
    for (int i = 0; i < 4; ++i) {
      __m256i* out = reinterpret_cast<__m256i*>(y + 8 * i);
      _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), _mm256_cvtepi16_epi32(parts[i])));
    }
  }
};

inline void triples(const uint8_t* p, const int8_t* table, Words& sum) {
  const __m256i nibble = _mm256_set1_epi8(15), one = _mm256_set1_epi8(1);
  __m256i sign = load(p + 4 * kRows), l = _mm256_setzero_si256(), h = l;
  for (int i = 0; i < 4; ++i, table += 2 * kTableBytes) {
    const __m256i both = load(p + i * kRows);
    const __m256i index[2] = {_mm256_and_si256(both, nibble),
                              _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    for (int j = 0; j < 2; ++j) {
      // The next sign is on top; the 1 keeps psignb from seeing zero.
      const __m256i s = _mm256_or_si256(sign, one);
      sign = _mm256_add_epi8(sign, sign);
      const int8_t* t = table + j * kTableBytes;
      l = _mm256_add_epi8(l, _mm256_sign_epi8(_mm256_shuffle_epi8(table_at(t), index[j]), s));
      h = _mm256_add_epi8(h, _mm256_sign_epi8(_mm256_shuffle_epi8(table_at(t + 16), index[j]), s));
    }
  }
  sum.add(l, h);
}

inline void pairs(const uint8_t* p, const int8_t* table, Words& sum) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i l = _mm256_setzero_si256(), h = l;
  for (int i = 0; i < 4; ++i, table += 2 * kTableBytes) {
    const __m256i both = load(p + i * kRows);
    const __m256i index[2] = {_mm256_and_si256(both, nibble),
                              _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble)};
    for (int j = 0; j < 2; ++j) {
      const int8_t* t = table + j * kTableBytes;
      l = _mm256_add_epi8(l, _mm256_shuffle_epi8(table_at(t), index[j]));
      h = _mm256_add_epi8(h, _mm256_shuffle_epi8(table_at(t + 16), index[j]));
    }
  }
  sum.add(l, h);
}

inline void put_sign(uint8_t* step, int64_t row, int triple) {
  step[4 * kRows + row] = static_cast<uint8_t>(step[4 * kRows + row] | 0x80 >> triple);
}

}  // namespace bitqwen_lut

namespace bitqwen_lut {

// Three ternary weights (a, b, c) of a row are v = 9a + 3b + c: |v| in 0..13 is a 4-bit index, v < 0 a sign.
// The columns beyond the last whole block of BK are taken as pairs (a, b), by index 3a + b + 4.
template <int64_t M, int64_t K, int64_t BM, int64_t BK, int64_t LANES>
struct Kernel {
  static_assert(LANES == kRows && BM % LANES == 0 && M % BM == 0, "rows do not fit the tiles");
  static_assert(BK % 24 == 0 && BK <= 240 && K % BK % 32 == 0, "columns do not fit the tiles");
  static constexpr int64_t kTripleColumns = K / BK * BK, kPairColumns = K % BK;
  static constexpr int64_t kBlockBytes = BK / 24 * kTripleStepBytes;
  static constexpr int64_t kTailBytes = kPairColumns / 16 * kPairStepBytes;
  // [K / BK][BM / LANES][BK / 24] steps of triples, then [BM / LANES][tail / 16] steps of pairs
  static constexpr int64_t kTileBytes = BM / LANES * (K / BK * kBlockBytes + kTailBytes);
  static constexpr int64_t kTables = kTripleColumns / 3 + kPairColumns / 2;

  static void pack_tile(const int8_t* w, uint8_t* out) {  // w: [BM, K], out: [kTileBytes]
    std::memset(out, 0, kTileBytes);
    for (int64_t block = 0; block < K / BK; ++block) {
      for (int64_t r = 0; r < BM; ++r) {
        uint8_t* base = out + (block * (BM / LANES) + r / LANES) * kBlockBytes;
        for (int64_t t = 0; t < BK / 3; ++t) {
          const int8_t* c = w + r * K + block * BK + 3 * t;
          const int v = 9 * c[0] + 3 * c[1] + c[2];
          uint8_t* step = base + t / 8 * kTripleStepBytes;
          put_index(step, r % LANES, static_cast<int>(t % 8), v < 0 ? -v : v);
          if (v < 0) put_sign(step, r % LANES, static_cast<int>(t % 8));
        }
      }
    }
    out += K / BK * (BM / LANES) * kBlockBytes;
    for (int64_t r = 0; r < BM; ++r) {
      for (int64_t t = 0; t < kPairColumns / 2; ++t) {
        const int8_t* c = w + r * K + kTripleColumns + 2 * t;
        uint8_t* step = out + r / LANES * kTailBytes + t / 8 * kPairStepBytes;
        put_index(step, r % LANES, static_cast<int>(t % 8), 3 * c[0] + c[1] + 4);
      }
    }
  }

  static void prepare(const int8_t* x, int8_t* tables) {  // x: [K], tables: [kTables * kTableBytes]
    for (int64_t t = 0; t < kTripleColumns / 3; ++t, x += 3, tables += kTableBytes) {
      for (int i = 0; i < 16; ++i) {
        const int a = i > 4, rest = i - 9 * a, b = rest > 1 ? 1 : rest < -1 ? -1 : 0, c = rest - 3 * b;
        put_entry(tables, i, i < 14 ? a * x[0] + b * x[1] + c * x[2] : 0);
      }
    }
    for (int64_t t = 0; t < kPairColumns / 2; ++t, x += 2, tables += kTableBytes) {
      for (int i = 0; i < 16; ++i) put_entry(tables, i, i < 9 ? (i / 3 - 1) * x[0] + (i % 3 - 1) * x[1] : 0);
    }
  }

  static void multiply_tile(const uint8_t* p, const int8_t* tables, int32_t* y) {  // y: [BM]
    std::memset(y, 0, BM * sizeof(int32_t));
    // A block's tables stay in the first-level cache for all BM rows.
    for (int64_t block = 0; block < K / BK; ++block, tables += BK / 3 * kTableBytes) {
      for (int64_t r = 0; r < BM; r += LANES) {
        Words sum;
        for (int64_t step = 0; step < BK / 24; ++step, p += kTripleStepBytes) {
          __builtin_prefetch(p + kPrefetchBytes);
          triples(p, tables + step * 8 * kTableBytes, sum);
        }
        sum.into(y + r);
      }
    }
    if constexpr (kPairColumns > 0) {
      for (int64_t r = 0; r < BM; r += LANES) {
        Words sum;
        for (int64_t step = 0; step < kPairColumns / 16; ++step, p += kPairStepBytes) {
          pairs(p, tables + step * 8 * kTableBytes, sum);
        }
        sum.into(y + r);
      }
    }
  }

 private:
  static void put_index(uint8_t* step, int64_t row, int at, int index) {
    uint8_t& byte = step[at / 2 * LANES + row];
    byte = static_cast<uint8_t>(byte | index << (at % 2 * 4));
  }
};

}  // namespace bitqwen_lut

namespace bitqwen_lut {

struct Entry {
  int64_t facts[7];  // m, k, bm, bk, bmm, bytes of a packed tile, bytes of the tables
  void (*pack_tile)(const int8_t* w, uint8_t* packed);
  void (*prepare)(const int8_t* x, int8_t* tables);
  void (*multiply_tile)(const uint8_t* packed, const int8_t* tables, int32_t* y);
};

template <int64_t M, int64_t K, int64_t BM, int64_t BK, int64_t LANES>
constexpr Entry entry() {
  using Of = Kernel<M, K, BM, BK, LANES>;
  return {{M, K, BM, BK, LANES, Of::kTileBytes, Of::kTables * kTableBytes},
          Of::pack_tile, Of::prepare, Of::multiply_tile};
}

constexpr Entry kEntries[] = {
    entry<896, 896, 128, 96, 32>(),  // attn_q, attn_output
    entry<128, 896, 128, 96, 32>(),  // attn_k, attn_v
    entry<4864, 896, 256, 96, 32>(),  // ffn_gate, ffn_up
    entry<896, 4864, 128, 192, 32>(),  // ffn_down
};
constexpr int32_t kCount = sizeof kEntries / sizeof kEntries[0];

}  // namespace bitqwen_lut

// The C interface. Functions return 0, or -1 where there is no kernel of that number. A tile is bm rows.
#define BITQWEN_LUT_API extern "C" __attribute__((visibility("default"), used)) inline int32_t

BITQWEN_LUT_API bitqwen_lut_abi() { return 1; }
BITQWEN_LUT_API bitqwen_lut_count() { return bitqwen_lut::kCount; }
BITQWEN_LUT_API bitqwen_lut_describe(int32_t i, int64_t* facts) {  // facts: [7], see Entry
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  std::memcpy(facts, bitqwen_lut::kEntries[i].facts, sizeof bitqwen_lut::kEntries[i].facts);
  return 0;
}
BITQWEN_LUT_API bitqwen_lut_pack_tile(int32_t i, const int8_t* w, uint8_t* packed) {  // w: [bm, k]
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].pack_tile(w, packed);
  return 0;
}
BITQWEN_LUT_API bitqwen_lut_prepare(int32_t i, const int8_t* x, int8_t* tables) {  // x: [k]
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].prepare(x, tables);
  return 0;
}
BITQWEN_LUT_API bitqwen_lut_multiply_tile(int32_t i, const uint8_t* packed, const int8_t* tables, int32_t* y) {
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].multiply_tile(packed, tables, y);  // y: [bm]
  return 0;
}

#undef BITQWEN_LUT_API
