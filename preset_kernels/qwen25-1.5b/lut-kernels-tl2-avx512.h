// Look-up-table kernels TL2 (triples and pairs, AVX-512) for Qwen2.5-1.5B. Generated, not written: change src/bitqwen/kernels/ and run
//     bitqwen kernels generate 1.5B --output DIR
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

#if !defined(__AVX512BW__)
#error "TL2 for AVX-512: compile with -mavx512f -mavx512bw"
#endif
#include <immintrin.h>

namespace bitqwen_lut {

// 64 rows, one in each byte; signs are masks. Look-ups are added as bytes, eight at a time: 8 * 15 fits.
// Then l + 31 h is formed in 16 bits, which hold the up to 10 steps of a block: 10 * 8 * 381 < 32768.
constexpr int64_t kRows = 64;
constexpr int64_t kTripleStepBytes = 5 * kRows;  // 8 triples: four vectors of two indices, eight masks
constexpr int64_t kPairStepBytes = 4 * kRows;    // 8 pairs

inline __m512i table_at(const int8_t* p) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m512i load(const uint8_t* p) { return _mm512_loadu_si512(p); }

struct Words {
  __m512i low = _mm512_setzero_si512();   // rows 0-7 of each 16
  __m512i high = _mm512_setzero_si512();  // rows 8-15 of each 16

  void add(__m512i l, __m512i h) {
    const __m512i weights = _mm512_set1_epi16(31 << 8 | 1);
    low = _mm512_add_epi16(low, _mm512_maddubs_epi16(weights, _mm512_unpacklo_epi8(l, h)));
    high = _mm512_add_epi16(high, _mm512_maddubs_epi16(weights, _mm512_unpackhi_epi8(l, h)));
  }
  void into(int32_t* y) const {
    add_eight(y, _mm512_castsi512_si128(low));
    add_eight(y + 8, _mm512_castsi512_si128(high));
    add_eight(y + 16, _mm512_extracti32x4_epi32(low, 1));
    add_eight(y + 24, _mm512_extracti32x4_epi32(high, 1));
    add_eight(y + 32, _mm512_extracti32x4_epi32(low, 2));
    add_eight(y + 40, _mm512_extracti32x4_epi32(high, 2));
    add_eight(y + 48, _mm512_extracti32x4_epi32(low, 3));
    add_eight(y + 56, _mm512_extracti32x4_epi32(high, 3));
  }
  static void add_eight(int32_t* y, __m128i words) {
    __m256i* out = reinterpret_cast<__m256i*>(y);
    _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), _mm256_cvtepi16_epi32(words)));
  }
};

inline void triples(const uint8_t* p, const int8_t* table, Words& sum) {
  const __m512i nibble = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
  uint64_t sign[8];
  std::memcpy(sign, p + 4 * kRows, sizeof sign);
  __m512i l = zero, h = zero;
  for (int i = 0; i < 4; ++i, table += 2 * kTableBytes) {
    const __m512i both = load(p + i * kRows);
    const __m512i index[2] = {_mm512_and_si512(both, nibble),
                              _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble)};
    for (int j = 0; j < 2; ++j) {
      const int8_t* t = table + j * kTableBytes;
      const __m512i low = _mm512_shuffle_epi8(table_at(t), index[j]);
      const __m512i high = _mm512_shuffle_epi8(table_at(t + 16), index[j]);
      const __mmask64 negative = sign[2 * i + j];
      l = _mm512_add_epi8(l, _mm512_mask_sub_epi8(low, negative, zero, low));
      h = _mm512_add_epi8(h, _mm512_mask_sub_epi8(high, negative, zero, high));
    }
  }
  sum.add(l, h);
}

inline void pairs(const uint8_t* p, const int8_t* table, Words& sum) {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i l = _mm512_setzero_si512(), h = l;
  for (int i = 0; i < 4; ++i, table += 2 * kTableBytes) {
    const __m512i both = load(p + i * kRows);
    const __m512i index[2] = {_mm512_and_si512(both, nibble),
                              _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble)};
    for (int j = 0; j < 2; ++j) {
      const int8_t* t = table + j * kTableBytes;
      l = _mm512_add_epi8(l, _mm512_shuffle_epi8(table_at(t), index[j]));
      h = _mm512_add_epi8(h, _mm512_shuffle_epi8(table_at(t + 16), index[j]));
    }
  }
  sum.add(l, h);
}

inline void put_sign(uint8_t* step, int64_t row, int triple) {
  uint8_t* mask = step + 4 * kRows + 8 * triple;
  mask[row / 8] = static_cast<uint8_t>(mask[row / 8] | 1 << row % 8);
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
    entry<1536, 1536, 256, 192, 64>(),  // attn_q, attn_output
    entry<256, 1536, 256, 192, 64>(),  // attn_k, attn_v
    entry<8960, 1536, 256, 192, 64>(),  // ffn_gate, ffn_up
    entry<1536, 8960, 256, 96, 64>(),  // ffn_down
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
