// Sweeps of sweep.h for vectors from a codebook: whole pairs are chosen at once. Columns stand pair by pair:
// pair p is columns 2 * p and 2 * p + 1, whichever columns of the file these are.
#pragma once

#include <cstdint>
#include <span>

#include "gguf/types.h"
#include "threads/pool.h"

namespace bitqwen {

/// Pairs of a matrix under way; pair p of the sweep is in block block_of[p] of each row.
struct PairSweep {
  int64_t rows;
  int pairs;
  const int32_t* block_of;  // [pairs]: which scale a pair has
  int64_t blocks;           // of a row
  float* scales;            // [rows][blocks]
  uint8_t* codes;           // [rows][pairs]
};

/// Chooses the pairs one after another, each after the errors of those before have been added to it, and by
/// what both its errors cost once later columns make up for them. target: [rows][2 * pairs], the weights with
/// the errors of all earlier blocks added; becomes E where `weights`: [rows][2 * pairs] says what the weights
/// are. H = U D U' with U unit upper triangular: feedback: [2 * pairs][2 * pairs] is the part of U, costs:
/// [2 * pairs] that of D. Throws Error(kUnsupported) for a type without a codebook.
void feedback_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                    const float* weights, const float* feedback, const float* costs, float* target,
                    ThreadPool& pool);

/// One round of coordinate descent: each pair's code, then each block's scale, to the best for all the
/// others. error: [rows][2 * pairs] is E, gradient: [rows][2 * pairs] is (E H) in these columns, both kept up
/// to date; moments: [2 * pairs][2 * pairs] is H there. With `fit_scales`, pairs are whole blocks in their
/// order. Returns how many codes have changed. Throws as feedback_pairs does, and Error(kArgument) for a code
/// that the type does not have.
int64_t descend_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                      const float* moments, float* error, float* gradient, bool fit_scales, ThreadPool& pool);

}  // namespace bitqwen
