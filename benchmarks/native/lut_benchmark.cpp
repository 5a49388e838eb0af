// Generated look-up-table kernels alone, one thread: each shape's tiles from memory, checked against a plain
// product and timed. The best of the rounds counts; other work on the machine shows in the others.
//
//   lut_benchmark_tl2 [rounds]
#include BITQWEN_LUT_HEADER

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

constexpr int64_t kBytes = int64_t{128} << 20;  // of packed weights: more than the last-level cache

// Enough for weights that no kernel can guess.
uint32_t next(uint32_t& state) { return state = state * 1664525u + 1013904223u; }

}  // namespace

int main(int argc, char** argv) {
  const int rounds = std::max(1, argc > 1 ? std::atoi(argv[1]) : 5);
  std::printf("%8s %8s | %8s %10s\n", "m", "k", "GB/s", "Gweights/s");
  for (int i = 0; i < bitqwen_lut_count(); ++i) {
    int64_t facts[9];
    bitqwen_lut_describe(i, facts);
    const int64_t k = facts[1], tile_rows = facts[2], tile_bytes = facts[7];
    uint32_t state = 1;
    std::vector<int8_t> weights(tile_rows * k), x(k), tables(facts[8]);  // [tile_rows, k], [k]
    for (int8_t& w : weights) w = static_cast<int8_t>(static_cast<int>((next(state) >> 16) % 3) - 1);
    for (int8_t& v : x) v = static_cast<int8_t>(static_cast<int>((next(state) >> 16) % 255) - 127);
    // Scales of 1: sums are then the integers that they should be.
    const std::vector<uint16_t> of_weights(tile_rows * (k / facts[6]), 0x3c00);
    const std::vector<float> of_x(k / facts[5], 1.0f);
    const int64_t tiles = std::max<int64_t>(1, kBytes / tile_bytes);
    std::vector<uint8_t> packed(tiles * tile_bytes);
    for (int64_t t = 0; t < tiles; ++t) {
      if (t == 0) {
        bitqwen_lut_pack_tile(i, weights.data(), of_weights.data(), packed.data());
      } else {
        std::copy_n(packed.data(), tile_bytes, packed.data() + t * tile_bytes);
      }
    }
    std::vector<float> y(tile_rows);
    double best = 1e9;
    for (int round = 0; round < rounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      bitqwen_lut_prepare(i, x.data(), tables.data());
      for (int64_t t = 0; t < tiles; ++t) {
        bitqwen_lut_multiply_tile(i, packed.data() + t * tile_bytes, tables.data(), of_x.data(), y.data(), 0,
                                  tile_rows / facts[4]);
      }
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    for (int64_t r = 0; r < tile_rows; ++r) {
      int32_t expected = 0;
      for (int64_t c = 0; c < k; ++c) expected += weights[r * k + c] * x[c];
      if (y[r] != static_cast<float>(expected)) {
        std::fprintf(stderr, "kernel %d, row %d: %g instead of %d\n", i, static_cast<int>(r),
                     static_cast<double>(y[r]), expected);
        return 1;
      }
    }
    std::printf("%8lld %8lld | %8.2f %10.1f\n", static_cast<long long>(facts[0]), static_cast<long long>(k),
                static_cast<double>(tiles * tile_bytes) / best * 1e-9,
                static_cast<double>(tiles * tile_rows * k) / best * 1e-9);
  }
  return 0;
}
