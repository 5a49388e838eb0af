// Look-up-table kernels TL1 (pairs, NEON) for Qwen2.5-0.5B. Generated, not written: change src/bitqwen/kernels/ and run
//     bitqwen kernels generate 0.5B --output DIR
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

#if !defined(__aarch64__)
#error "TL1 is for 64-bit ARM"
#endif
#include <arm_neon.h>

namespace bitqwen_lut {

// TL1: all columns are pairs. 32 rows, one in each byte of two registers.
constexpr Split kTripleSplit = {};
constexpr int64_t kTripleStepBytes = 0;
constexpr int64_t triple_columns(int64_t) { return 0; }

template <int64_t LANES>
struct Words {
  static_assert(LANES == 32 || LANES == 64, "rows do not fit the registers");
  static constexpr int kVectors = LANES / 16;
  int16x8_t v[2 * kVectors];

  Words() {
    for (auto& word : v) word = vdupq_n_s16(0);
  }
};

// Sums of LANES rows, and what a cell adds to them.
template <int64_t LANES>
struct Sums {
  float32x4_t v[LANES / 4];

  Sums() {
    for (auto& sum : v) sum = vdupq_n_f32(0);
  }
  void load(const float* y) {
    for (int i = 0; i < LANES / 4; ++i) v[i] = vld1q_f32(y + 4 * i);
  }
  void store(float* y) const {
    for (int i = 0; i < LANES / 4; ++i) vst1q_f32(y + 4 * i, v[i]);
  }
  void add(const Words<LANES>& cell, const uint8_t* halves, float scale) {
    const float32x4_t of_x = vdupq_n_f32(scale);
    for (int i = 0; i < LANES / 8; ++i) {
      const float16x8_t of_w = vreinterpretq_f16_u8(vld1q_u8(halves + 16 * i));
      const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(cell.v[i])));
      const float32x4_t high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(cell.v[i])));
      v[2 * i] = vfmaq_f32(v[2 * i], vmulq_f32(low, vcvt_f32_f16(vget_low_f16(of_w))), of_x);
      v[2 * i + 1] = vfmaq_f32(v[2 * i + 1], vmulq_f32(high, vcvt_f32_f16(vget_high_f16(of_w))), of_x);
    }
  }
};

template <int64_t LANES>
inline void triples(const uint8_t*, const int8_t*, Words<LANES>&) {}
inline void put_sign(uint8_t*, int64_t, int) {}

// Look-ups are added as bytes, eight at a time: 8 * 15 fits. Then l + 31 h is formed in 16 bits.
template <int64_t COUNT, int64_t LANES>  // COUNT vectors, each with two pairs of each row
inline void pairs(const uint8_t* p, const int8_t* table, Words<LANES>& sum) {
  constexpr int kVectors = Words<LANES>::kVectors;
  const uint8x16_t nibble = vdupq_n_u8(15);
  int8x16_t l[kVectors], h[kVectors];
  for (int v = 0; v < kVectors; ++v) l[v] = h[v] = vdupq_n_s8(0);
  for (int i = 0; i < int{COUNT}; ++i, table += 2 * kTableBytes) {
    const int8x16_t low0 = vld1q_s8(table), high0 = vld1q_s8(table + 16);
    const int8x16_t low1 = vld1q_s8(table + 32), high1 = vld1q_s8(table + 48);
    for (int v = 0; v < kVectors; ++v) {
      const uint8x16_t both = vld1q_u8(p + i * LANES + 16 * v);
      const uint8x16_t first = vandq_u8(both, nibble), second = vshrq_n_u8(both, 4);
      l[v] = vaddq_s8(l[v], vaddq_s8(vqtbl1q_s8(low0, first), vqtbl1q_s8(low1, second)));
      h[v] = vaddq_s8(h[v], vaddq_s8(vqtbl1q_s8(high0, first), vqtbl1q_s8(high1, second)));
    }
  }
  const int8x8_t weight = vdup_n_s8(31);
  for (int v = 0; v < kVectors; ++v) {
    sum.v[2 * v] = vmlal_s8(vaddw_s8(sum.v[2 * v], vget_low_s8(l[v])), vget_low_s8(h[v]), weight);
    sum.v[2 * v + 1] = vmlal_s8(vaddw_s8(sum.v[2 * v + 1], vget_high_s8(l[v])), vget_high_s8(h[v]), weight);
  }
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
    entry<896, 896, 128, 896, 64, 64, 64>(),  // attn_q, attn_output
    entry<128, 896, 128, 896, 64, 64, 64>(),  // attn_k, attn_v
    entry<4864, 896, 256, 896, 64, 64, 64>(),  // ffn_gate, ffn_up
    entry<896, 4864, 128, 256, 64, 128, 256>(),  // ffn_down
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
extern "C" __attribute__((visibility("default"), used)) inline const char* bitqwen_lut_needs() { return "neon"; }

#undef BITQWEN_LUT_API
