// What a sweep of codebook_sweep.h does to one row; compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "quant/codebook_sweep.h"

namespace bitqwen {

/// All points, those that are opposite to one in the codebook written out: code c is point c.
struct AllPoints {
  static constexpr int kMost = 64;
  int count = 0;                        // a multiple of 16
  alignas(64) float at[2][kMost] = {};  // [dim][code]
};

/// One row's part of feedback_pairs() and descend_pairs(); arrays of rows are whole, `row` says which.
/// product: [2 * pairs], overwritten. `descend` returns how many codes have changed.
struct PairRows {
  void (*feedback)(const AllPoints& points, const PairSweep& sweep, int64_t row, const float* weights,
                   const float* feedback, const float* costs, float* target);
  int64_t (*descend)(const AllPoints& points, const PairSweep& sweep, int64_t row, const float* moments,
                     float* error, float* gradient, bool fit_scales, float* product);
};

}  // namespace bitqwen
