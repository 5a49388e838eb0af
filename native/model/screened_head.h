// A coarse copy of the output matrix that tells which of its rows can still matter.
//
// Rows and hidden state are rotated alike, by random signs and a Hadamard transform of each 128 columns,
// which leaves their products as they are and spreads every outlier over its block. The rotated rows are
// kept in 2 bits. What that leaves out of a row is then a sum of 128 terms of random sign a block: the
// error of its product is close to normal, with the deviation that spread() bounds. Rows that cannot
// reach a threshold by kDeviations of these need no exact product.
#pragma once

#include <cstdint>
#include <vector>

#include "gguf/tensor.h"
#include "kernels/multiply.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

class ScreenedHead {
 public:
  static constexpr int kBlock = 128;
  /// One row in 2e10 is further off if errors are normal. docs/kernels.md says what was checked.
  static constexpr float kDeviations = 6.5f;

  /// Throws Error(kUnsupported) when the columns are no multiple of kBlock.
  ScreenedHead(const gguf::TensorView& head, ThreadPool& pool);

  /// What one of such a matrix takes.
  static int64_t bytes(int64_t rows, int64_t cols);

  /// x: [cols], in place.
  void rotate(float* x) const;
  /// The coarse rows: [rows, cols], to be multiplied with rotated states.
  const PackedMatrix& rows() const { return rows_; }
  /// The deviation of row `row`'s error for a state of norm 1, or more.
  float spread(int64_t row) const { return spreads_[static_cast<size_t>(row)]; }
  int64_t bytes() const { return rows_.bytes() + static_cast<int64_t>(spreads_.size()) * 4; }

 private:
  std::vector<float> signs_;    // [cols] 1 or -1
  std::vector<float> spreads_;  // [rows]
  PackedMatrix rows_;           // of type V2
};

}  // namespace bitqwen
