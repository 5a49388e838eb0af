// One row block of coarse_rows(); compiled once for each instruction set.
#pragma once

#include <array>
#include <cstdint>

#include "weights/layout.h"

namespace bitqwen {

constexpr int kMostMixed = 512;  // columns: 16 rows of them stay in the first-level cache
constexpr int kInnerLevel = 9, kOuterLevel = 30;

/// Writes row block `block` of `out` from w's; spreads: [kRowBlock].
using CoarseBlock = void (*)(const PackedMatrix::Layout& w, int64_t block, const float* signs, int mix,
                             PackedMatrix::Layout& out, float* spreads);

void coarse_block_baseline(const PackedMatrix::Layout&, int64_t, const float*, int, PackedMatrix::Layout&,
                           float*);
void coarse_block_avx2(const PackedMatrix::Layout&, int64_t, const float*, int, PackedMatrix::Layout&,
                       float*);
void coarse_block_avx512(const PackedMatrix::Layout&, int64_t, const float*, int, PackedMatrix::Layout&,
                         float*);

}  // namespace bitqwen
