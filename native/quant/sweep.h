// Sweeps over the columns of a matrix against the second moments of its inputs, H = sum x x'. Both keep
// E = W - Q, what is lost of each weight, and lower tr(E H E'), what is lost of the outputs.
#pragma once

#include <cstdint>

#include "quant/grid.h"
#include "threads/pool.h"

namespace bitqwen {

/// Columns of a matrix under way; column c of the sweep is group_of[c] of each row.
struct SweepBlock {
  int64_t rows;
  int columns;
  const int32_t* group_of;  // [columns]: which step and offset a column has
  int64_t groups;           // of a row
  float* steps;             // [rows][groups]
  const float* offsets;     // [rows][groups]
  GridShape grid;
  int8_t* codes;  // [rows][columns]
};

/// Rounds the columns one after another, each after the error of those before has been added to it
/// (GPTQ, arXiv 2210.17323, in the form of LDLQ, arXiv 2307.13304). target: [rows][columns], the weights
/// with the errors of all earlier blocks added; becomes E where `weights`: [rows][columns] says what the
/// weights are. feedback: [columns][columns], the part of the unit upper triangular factor of H.
void feedback_sweep(const SweepBlock& block, const float* weights, const float* feedback, float* target,
                    ThreadPool& pool);

/// One round of coordinate descent: each code, then each group's step, to the best for all the others.
/// error: [rows][columns] is E, gradient: [rows][columns] is (E H) in these columns, both kept up to date;
/// moments: [columns][columns] is H there. With `fit_steps`, columns are whole groups in their order; units:
/// [rows][groups] as read_grid gives them. Returns how many codes have changed.
int64_t descent_sweep(const SweepBlock& block, const float* moments, float* error, float* gradient,
                      bool fit_steps, const float* units, const UnitRange& range, ThreadPool& pool);

}  // namespace bitqwen
