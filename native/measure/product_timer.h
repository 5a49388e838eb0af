// Times products of one shape as a model computes them: all threads of a pool, row pieces, one barrier.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gguf/types.h"
#include "kernels/multiply.h"
#include "kernels/plan.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen::measure {

/// Random weights of one shape, as many copies as it takes to push each other out of the caches.
class ProductTimer {
 public:
  /// `least_bytes` of weights are gone through before any is read again; at least one copy is made.
  /// Throws Error(kArgument) for a shape that the type does not allow, Error(kResource) without memory.
  ProductTimer(gguf::TensorType type, int64_t rows, int64_t cols, int threads, int64_t least_bytes,
               uint64_t seed);

  int threads() const { return pool_.size(); }
  int64_t copies() const { return static_cast<int64_t>(copies_.size()); }
  int64_t bytes() const { return copies_.front().bytes(); }  // of one copy, as built-in kernels read it
  /// Of one copy as the generated kernels read it that were timed last; 0 before any were.
  int64_t generated_bytes() const;
  Format format() const { return copies_.front().layout().format; }

  /// Seconds of one product of `columns` columns, the rounding of its activations included: the mean over
  /// `products` of them, or with 0 over one for every copy.
  double seconds(int columns, const ProductPlan& plan, int products = 0);
  /// What the live kernels do without a plan.
  ProductPlan default_plan(int columns) const;
  /// Of instruction sets that run here, best first: those whose kernels for this format are not
  /// another's. The live one comes first; the scalar one only where there is no other.
  std::vector<Isa> distinct_isas() const;
  /// The widest tile of activations that a set's kernels take.
  static int widest_tile(Isa isa);

 private:
  ThreadPool pool_;
  std::vector<PackedMatrix> copies_;
  std::vector<float> x_;  // [kMostColumns, cols]
  std::vector<float> y_;  // [columns, rows]
  size_t next_ = 0;
};

}  // namespace bitqwen::measure
