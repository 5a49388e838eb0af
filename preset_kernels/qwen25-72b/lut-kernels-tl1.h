// Look-up-table kernels TL1 (pairs, NEON) for Qwen2.5-72B. Generated, not written: change src/bitqwen/kernels/ and run
//     bitqwen kernels generate 72B --output DIR
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

#if !defined(__aarch64__)
#error "TL1 is for 64-bit ARM"
#endif
#include <arm_neon.h>

namespace bitqwen_lut {

// Two ternary weights (a, b) of a row are the 4-bit index 3a + b + 4. Look-ups are added as bytes, eight at
// a time: 8 * 15 fits. Then l + 31 h is formed in 16 bits, which hold the up to 16 steps of a block:
// 16 * 8 * 254 < 32768.
template <int64_t M, int64_t K, int64_t BM, int64_t BK, int64_t LANES>
struct Kernel {
  static_assert((LANES == 32 || LANES == 64) && BM % LANES == 0 && M % BM == 0, "rows do not fit the tiles");
  static_assert(BK % 16 == 0 && BK <= 256 && K % BK == 0, "columns do not fit the tiles");
  static constexpr int64_t kStepBytes = 4 * LANES;  // 16 columns: four vectors of two indices a row
  static constexpr int64_t kTileBytes = BM * K / 4;  // [K / BK][BM / LANES][BK / 16] steps
  static constexpr int64_t kTables = K / 2;
  static constexpr int kVectors = LANES / 16;

  static void pack_tile(const int8_t* w, uint8_t* out) {  // w: [BM, K], out: [kTileBytes]
    std::memset(out, 0, kTileBytes);
    for (int64_t r = 0; r < BM; ++r) {
      for (int64_t t = 0; t < K / 2; ++t) {
        const int64_t block = 2 * t / BK, step = 2 * t % BK / 16, at = t % 8;
        uint8_t* base = out + ((block * (BM / LANES) + r / LANES) * (BK / 16) + step) * kStepBytes;
        const int8_t* c = w + r * K + 2 * t;
        uint8_t& byte = base[at / 2 * LANES + r % LANES];
        byte = static_cast<uint8_t>(byte | (3 * c[0] + c[1] + 4) << (at % 2 * 4));
      }
    }
  }

  static void prepare(const int8_t* x, int8_t* tables) {  // x: [K], tables: [kTables * kTableBytes]
    for (int64_t t = 0; t < K / 2; ++t, x += 2, tables += kTableBytes) {
      for (int i = 0; i < 16; ++i) put_entry(tables, i, i < 9 ? (i / 3 - 1) * x[0] + (i % 3 - 1) * x[1] : 0);
    }
  }

  static void multiply_tile(const uint8_t* p, const int8_t* tables, int32_t* y) {  // y: [BM]
    std::memset(y, 0, BM * sizeof(int32_t));
    // A block's tables stay in the first-level cache for all BM rows.
    for (int64_t block = 0; block < K / BK; ++block, tables += BK / 2 * kTableBytes) {
      for (int64_t r = 0; r < BM; r += LANES) {
        int16x8_t sum[2 * kVectors];
        for (int v = 0; v < 2 * kVectors; ++v) sum[v] = vdupq_n_s16(0);
        for (int64_t step = 0; step < BK / 16; ++step, p += kStepBytes) {
          __builtin_prefetch(p + kPrefetchBytes);
          pairs(p, tables + step * 8 * kTableBytes, sum);
        }
        for (int v = 0; v < 2 * kVectors; ++v) {
          int32_t* out = y + r + 8 * v;
          vst1q_s32(out, vaddw_s16(vld1q_s32(out), vget_low_s16(sum[v])));
          vst1q_s32(out + 4, vaddw_s16(vld1q_s32(out + 4), vget_high_s16(sum[v])));
        }
      }
    }
  }

 private:
  static void pairs(const uint8_t* p, const int8_t* table, int16x8_t* sum) {
    const uint8x16_t nibble = vdupq_n_u8(15);
    int8x16_t l[kVectors], h[kVectors];
    for (int v = 0; v < kVectors; ++v) l[v] = h[v] = vdupq_n_s8(0);
    for (int i = 0; i < 4; ++i, table += 2 * kTableBytes) {
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
      sum[2 * v] = vmlal_s8(vaddw_s8(sum[2 * v], vget_low_s8(l[v])), vget_low_s8(h[v]), weight);
      sum[2 * v + 1] = vmlal_s8(vaddw_s8(sum[2 * v + 1], vget_high_s8(l[v])), vget_high_s8(h[v]), weight);
    }
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
    entry<8192, 8192, 256, 256, 64>(),  // attn_q, attn_output
    entry<1024, 8192, 256, 256, 64>(),  // attn_k, attn_v
    entry<29568, 8192, 128, 256, 64>(),  // ffn_gate, ffn_up
    entry<8192, 29568, 256, 128, 64>(),  // ffn_down
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
