// The rows of a matrix in two bits, rotated: a fifth to a third of its bytes, whose products tell which exact
// products are worth computing.
//
// Rows and states are rotated alike, by random signs and a Hadamard transform of each `mix` columns, which
// leaves their products as they are and spreads every outlier. Each 128 rotated columns of a row are then
// scale * {-30, -9, 9, 30}, near the levels that suit a normal distribution best. The scale is not the one of
// the least error but the one that leaves the error orthogonal to what it is the error of: then the product
// with a state is off by a sum of terms of random sign whatever the product is, large or small. (RaBitQ, Gao
// and Long 2024, scales so for the same reason.)
#pragma once

#include <cstdint>
#include <span>

#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

constexpr int kCoarseBlock = 128;  // columns that share a scale

/// Columns that are mixed: the largest power of two that divides `cols`, up to 512. 0 if it is below
/// kCoarseBlock.
int coarse_mix(int64_t cols);

/// w's rows as a matrix of format V2. signs: [w.cols()], 1 or -1. spreads: [w.rows()], of each row the
/// deviation of its product's error for a state of norm 1, or more. Needs coarse_mix(w.cols()) > 0.
PackedMatrix coarse_rows(const PackedMatrix& w, std::span<const float> signs, std::span<float> spreads,
                         ThreadPool& pool);

/// Rotates a state alike. x: [signs.size()], in place.
void rotate_state(std::span<const float> signs, float* x);

}  // namespace bitqwen
