// Look-up-table kernels TL2 (triples and pairs, AVX2) for Qwen2.5-72B. Generated, not written: change src/bitqwen/kernels/ and run
//     bitqwen kernels generate 72B --output DIR
// Ternary weights with a scale for every UNIT columns of a row, int8 activations with a scale for every CELL columns:
//     dot  = sum over a cell of w x              w in {-1, 0, 1}, x in [-127, 127]: an integer, exactly
//     y[m] = fma(float(dot) * weight_scale, activation_scale, y[m])     cell after cell, in float
// clang-format off
#pragma once

#include <cstdint>
#include <cstring>

namespace bitqwen_lut {

// For each group of columns a table of 16 sums v = 31 h + l, split into bytes: l in [-15, 15], h in [-12, 12].
constexpr int64_t kTableBytes = 32;  // 16 l, then 16 h
constexpr int64_t kPrefetchBytes = 2048;

struct Split {
  int16_t a[16], b[16], c[16];  // what entry i multiplies the activations with
};

inline void put_table(const Split& of, int a, int b, int c, int8_t* table) {
  for (int i = 0; i < 16; ++i) {
    const int v = of.a[i] * a + of.b[i] * b + of.c[i] * c;
    const int h = (v * 1057 + (1 << 14)) >> 15;  // v / 31, rounded
    table[i] = static_cast<int8_t>(v - 31 * h);
    table[16 + i] = static_cast<int8_t>(h);
  }
}

// Pairs (a, b): index 3a + b + 4.
constexpr Split kPairs = {{-1, -1, -1, 0, 0, 0, 1, 1, 1}, {-1, 0, 1, -1, 0, 1, -1, 0, 1}, {}};

}  // namespace bitqwen_lut

namespace bitqwen_lut {

// TL2. Three ternary weights (a, b, c) of a row are v = 9a + 3b + c: |v| in 0..13 is a 4-bit index, v < 0 a sign.
// The columns of a cell beyond a multiple of 24 are taken as pairs.
constexpr Split kTripleSplit = {{0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                                {0, 0, 1, 1, 1, -1, -1, -1, 0, 0, 0, 1, 1, 1},
                                {0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1, -1, 0, 1}};
constexpr int64_t triple_columns(int64_t cell) { return cell / 24 * 24; }

}  // namespace bitqwen_lut

#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "TL2 for AVX2: compile with -mavx2 -mfma -mf16c"
#endif
#include <immintrin.h>

namespace bitqwen_lut {

// 32 rows, one in each byte. Look-ups are added as bytes, eight at a time: 8 * 15 fits. Then l + 31 h is
// formed in 16 bits.
constexpr int64_t kRows = 32;
constexpr int64_t kTripleStepBytes = 5 * kRows;  // 8 triples: four vectors of two indices, one of signs

inline __m256i table_at(const int8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

template <int64_t LANES>
struct Words {
  static_assert(LANES == kRows, "rows do not fit the registers");
  __m256i low = _mm256_setzero_si256();   // rows 0-7, 16-23
  __m256i high = _mm256_setzero_si256();  // rows 8-15, 24-31

  void add(__m256i l, __m256i h) {
    const __m256i weights = _mm256_set1_epi16(31 << 8 | 1);
    low = _mm256_add_epi16(low, _mm256_maddubs_epi16(weights, _mm256_unpacklo_epi8(l, h)));
    high = _mm256_add_epi16(high, _mm256_maddubs_epi16(weights, _mm256_unpackhi_epi8(l, h)));
  }
};

// Sums of 32 rows, and what a cell adds to them.
template <int64_t LANES>
struct Sums {
  __m256 v[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};

  void load(const float* y) {
    for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(y + 8 * i);
  }
  void store(float* y) const {
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(y + 8 * i, v[i]);
  }
  void add(const Words<LANES>& cell, const uint8_t* halves, float scale) {
    const __m128i parts[4] = {_mm256_castsi256_si128(cell.low), _mm256_castsi256_si128(cell.high),
                              _mm256_extracti128_si256(cell.low, 1), _mm256_extracti128_si256(cell.high, 1)};
    const __m256 of_x = _mm256_set1_ps(scale);
    for (int i = 0; i < 4; ++i) {
      const __m256 of_w = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves + 16 * i)));
      const __m256 dot = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(parts[i]));
      v[i] = _mm256_fmadd_ps(_mm256_mul_ps(dot, of_w), of_x, v[i]);
    }
  }
};

inline void triples(const uint8_t* p, const int8_t* table, Words<kRows>& sum) {
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

template <int64_t COUNT>  // of vectors, each with two pairs of each row
inline void pairs(const uint8_t* p, const int8_t* table, Words<kRows>& sum) {
  const __m256i nibble = _mm256_set1_epi8(15);
  __m256i l = _mm256_setzero_si256(), h = l;
  for (int i = 0; i < int{COUNT}; ++i, table += 2 * kTableBytes) {
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

// The layout and the loops that every family shares. A family has, for LANES rows:
//   triple_columns   of a cell that are taken as triples, a multiple of 24; the rest are pairs
//   triples, pairs   look up 8 triples, and some pairs, of each row and add them to Words
//   Words            the integers of a cell, in 16 bits, which hold 128 columns of 127
//   Sums             a float a row: load, add a cell's integers times the scales, store
template <int64_t M, int64_t K, int64_t BM, int64_t BK, int64_t LANES, int64_t CELL, int64_t UNIT>
struct Kernel {
  static_assert(BM % LANES == 0 && M % BM == 0, "rows do not fit the tiles");
  static_assert(CELL <= 128 && CELL % 8 == 0 && UNIT % CELL == 0 && BK % UNIT == 0 && K % BK == 0,
                "columns do not fit the tiles");
  static constexpr int64_t kTriples = triple_columns(CELL) / 3, kPairsOfCell = (CELL - 3 * kTriples) / 2;
  static constexpr int64_t kTripleBytes = kTriples / 8 * kTripleStepBytes;
  static constexpr int64_t kCellBytes = kTripleBytes + kPairsOfCell / 2 * LANES;
  static constexpr int64_t kUnitBytes = 2 * LANES + UNIT / CELL * kCellBytes;  // LANES scales, then the cells
  static constexpr int64_t kTileBytes = BM / LANES * (K / UNIT) * kUnitBytes;  // [K / BK][BM / LANES][BK / UNIT] units
  static constexpr int64_t kTables = K / CELL * (kTriples + kPairsOfCell);

  static void pack_tile(const int8_t* w, const uint16_t* scales, uint8_t* out) {  // w: [BM, K], scales: [BM, K / UNIT]
    std::memset(out, 0, kTileBytes);
    for (int64_t r = 0; r < BM; ++r) {
      for (int64_t u = 0; u < K / UNIT; ++u) {
        const int64_t block = u * UNIT / BK, in_block = u - block * (BK / UNIT);
        uint8_t* unit = out + ((block * (BM / LANES) + r / LANES) * (BK / UNIT) + in_block) * kUnitBytes;
        std::memcpy(unit + r % LANES * 2, scales + r * (K / UNIT) + u, 2);
        for (int64_t c = 0; c < UNIT / CELL; ++c) {
          pack_cell(w + r * K + u * UNIT + c * CELL, r % LANES, unit + 2 * LANES + c * kCellBytes);
        }
      }
    }
  }

  static void prepare(const int8_t* x, int8_t* tables) {  // x: [K], tables: [kTables * kTableBytes]
    for (int64_t c = 0; c < K / CELL; ++c) {
      for (int64_t t = 0; t < kTriples; ++t, x += 3, tables += kTableBytes) put_table(kTripleSplit, x[0], x[1], x[2], tables);
      for (int64_t t = 0; t < kPairsOfCell; ++t, x += 2, tables += kTableBytes) put_table(kPairs, x[0], x[1], 0, tables);
    }
  }

  static void multiply_tile(const uint8_t* packed, const int8_t* tables, const float* scales, float* y, int64_t begin,
                            int64_t end) {
    // A block's tables stay in the first-level cache for all BM rows.
    for (int64_t block = 0; block < K / BK; ++block) {
      const int8_t* block_tables = tables + block * (BK / CELL) * (kTriples + kPairsOfCell) * kTableBytes;
      for (int64_t r = begin; r < end; ++r) {
        const uint8_t* unit = packed + (block * (BM / LANES) + r) * (BK / UNIT) * kUnitBytes;
        const int8_t* table = block_tables;
        const float* scale = scales + block * (BK / CELL);
        Sums<LANES> sums;
        if (block > 0) sums.load(y + r * LANES);
        for (int64_t u = 0; u < BK / UNIT; ++u, unit += kUnitBytes) {
          const uint8_t* cell = unit + 2 * LANES;
          for (int64_t c = 0; c < UNIT / CELL; ++c, cell += kCellBytes, ++scale) {
            Words<LANES> words;
            for (int64_t step = 0; step < kTriples / 8; ++step, table += 8 * kTableBytes) {
              const uint8_t* p = cell + step * kTripleStepBytes;
              for (int64_t i = 0; i < kTripleStepBytes; i += 64) __builtin_prefetch(p + kPrefetchBytes + i);
              triples(p, table, words);
            }
            const uint8_t* p = cell + kTripleBytes;
            for (int64_t step = 0; step < kPairsOfCell / 8; ++step, p += 4 * LANES, table += 8 * kTableBytes) {
              if (kTriples == 0) __builtin_prefetch(p + kPrefetchBytes);
              pairs<4>(p, table, words);
            }
            if constexpr (kPairsOfCell % 8 > 0) pairs<kPairsOfCell % 8 / 2>(p, table, words);
            table += kPairsOfCell % 8 * kTableBytes;
            sums.add(words, unit, *scale);
          }
        }
        sums.store(y + r * LANES);
      }
    }
  }

 private:
  static void put_index(uint8_t* step, int64_t row, int64_t at, int index) {
    uint8_t& byte = step[at / 2 * LANES + row];
    byte = static_cast<uint8_t>(byte | index << (at % 2 * 4));
  }
  static void pack_cell(const int8_t* w, int64_t row, uint8_t* cell) {
    for (int64_t t = 0; t < kTriples; ++t, w += 3) {
      const int v = 9 * w[0] + 3 * w[1] + w[2];
      uint8_t* step = cell + t / 8 * kTripleStepBytes;
      put_index(step, row, t % 8, v < 0 ? -v : v);
      if (v < 0) put_sign(step, row, static_cast<int>(t % 8));
    }
    cell += kTripleBytes;
    for (int64_t t = 0; t < kPairsOfCell; ++t, w += 2) {
      put_index(cell + t / 8 * 4 * LANES, row, t % 8, 3 * w[0] + w[1] + 4);
    }
  }
};

}  // namespace bitqwen_lut

namespace bitqwen_lut {

struct Entry {
  // m, k, bm, bk, bmm, columns of an activation scale, of a weight scale, bytes of a packed tile, of the tables
  int64_t facts[9];
  void (*pack_tile)(const int8_t* w, const uint16_t* scales, uint8_t* packed);
  void (*prepare)(const int8_t* x, int8_t* tables);
  void (*multiply_tile)(const uint8_t* packed, const int8_t* tables, const float* scales, float* y, int64_t begin,
                        int64_t end);
};

template <int64_t M, int64_t K, int64_t BM, int64_t BK, int64_t LANES, int64_t CELL, int64_t UNIT>
constexpr Entry entry() {
  using Of = Kernel<M, K, BM, BK, LANES, CELL, UNIT>;
  return {{M, K, BM, BK, LANES, CELL, UNIT, Of::kTileBytes, Of::kTables * kTableBytes},
          Of::pack_tile, Of::prepare, Of::multiply_tile};
}

constexpr Entry kEntries[] = {
    entry<8192, 8192, 256, 4096, 32, 128, 256>(),  // attn_q, attn_output
    entry<1024, 8192, 256, 4096, 32, 128, 256>(),  // attn_k, attn_v
    entry<29568, 8192, 128, 4096, 32, 128, 256>(),  // ffn_gate, ffn_up
    entry<8192, 29568, 256, 2688, 32, 64, 64>(),  // ffn_down
};
constexpr int32_t kCount = sizeof kEntries / sizeof kEntries[0];

}  // namespace bitqwen_lut

// The C interface. Functions return 0, or -1 where there is no kernel of that number. A tile is bm rows.
#define BITQWEN_LUT_API extern "C" __attribute__((visibility("default"), used)) inline int32_t

BITQWEN_LUT_API bitqwen_lut_abi() { return 2; }
BITQWEN_LUT_API bitqwen_lut_count() { return bitqwen_lut::kCount; }
BITQWEN_LUT_API bitqwen_lut_describe(int32_t i, int64_t* facts) {  // facts: [9], see Entry
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  std::memcpy(facts, bitqwen_lut::kEntries[i].facts, sizeof bitqwen_lut::kEntries[i].facts);
  return 0;
}
// w: [bm, k]; scales: [bm, k / unit] as IEEE halves
BITQWEN_LUT_API bitqwen_lut_pack_tile(int32_t i, const int8_t* w, const uint16_t* scales, uint8_t* packed) {
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].pack_tile(w, scales, packed);
  return 0;
}
BITQWEN_LUT_API bitqwen_lut_prepare(int32_t i, const int8_t* x, int8_t* tables) {  // x: [k]
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].prepare(x, tables);
  return 0;
}
// scales: [k / cell], of the activations; y: [bm], of which vectors begin to end of bmm rows are computed
BITQWEN_LUT_API bitqwen_lut_multiply_tile(int32_t i, const uint8_t* packed, const int8_t* tables,
                                          const float* scales, float* y, int64_t begin, int64_t end) {
  if (i < 0 || i >= bitqwen_lut::kCount) return -1;
  bitqwen_lut::kEntries[i].multiply_tile(packed, tables, scales, y, begin, end);
  return 0;
}

// The instruction set that these kernels need, by bitqwen's name.
extern "C" __attribute__((visibility("default"), used)) inline const char* bitqwen_lut_needs() { return "avx2"; }

#undef BITQWEN_LUT_API
