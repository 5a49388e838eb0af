// A coarse copy of the output matrix that tells which of its rows can still matter.
//
// The error of a row's coarse product is a sum of many terms of random sign (kernels/coarse_rows.h) whose
// deviation spread() bounds: it is `z` deviations low with a probability below e^(-z z / 2). A row that is
// needed is missed only if it is deviations() low.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

class ScreenedHead {
 public:
  enum class Use : uint8_t { kNever, kIfRoom, kAlways };

  /// Throws Error(kUnsupported) when the columns are no multiple of 128.
  ScreenedHead(const PackedMatrix& head, ThreadPool& pool);

  /// What one of such a matrix takes.
  static int64_t bytes(int64_t rows, int64_t cols);

  /// Deviations by which the first of `rows` needed rows is too low with a probability below 1e-5.
  static float deviations(int64_t rows) {
    return static_cast<float>(std::sqrt(2.0 * std::log(1e5 * static_cast<double>(rows))));
  }

  /// x: [cols], in place.
  void rotate(float* x) const;
  /// The coarse rows: [rows, cols], to be multiplied with rotated states.
  const PackedMatrix& rows() const { return rows_; }
  /// Of each row, the deviation of its error for a state of norm 1, or more: [rows].
  std::span<const float> spreads() const { return spreads_; }
  int64_t bytes() const { return rows_.bytes() + static_cast<int64_t>(spreads_.size() * sizeof(float)); }

 private:
  std::vector<float> signs_;    // [cols] 1 or -1
  std::vector<float> spreads_;  // [rows]
  PackedMatrix rows_;           // of type V2
};

}  // namespace bitqwen
