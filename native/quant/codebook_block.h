// Codes and scale of one block of pairs; compiled once for each instruction set.
#pragma once

#include <cstdint>
#include <span>

namespace bitqwen {

constexpr int kPairs = 64;  // of a block

/// A block with each coordinate's values, and what their errors weigh, side by side.
struct PairBlock {
  alignas(64) float values[2][kPairs];
  alignas(64) float weights[2][kPairs];
};

struct Points {
  int entries = 0;
  bool mirrored = false;
  float at[2][64] = {};  // [dim][entry]
};

struct BlockCodes {
  float scale = 0;
  float gain = 0;              // how much less the weighted squared error is than without any weights
  uint8_t codes[kPairs] = {};  // with the sign bit of mirrored codebooks
};

/// Refines each of the scales `starts` (all positive) `rounds` times: codes for the scale, the best scale for
/// those codes. Leaves the best of them, with its codes, in `out`; `as_half`: rounded to a float16.
using FitBlock = void (*)(const Points& points, const PairBlock& block, std::span<const float> starts,
                          int rounds, bool as_half, BlockCodes& out);

}  // namespace bitqwen
