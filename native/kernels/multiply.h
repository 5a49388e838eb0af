// Matrix products of packed weights with quantised activations, on the kernels of the live ISA.
//
// The law of this room: one output is one chain of operations in one order, for every instruction
// set, thread count, batch size and chunk size. Within a cell (the columns that share one weight
// scale and one activation scale) the dot product is an exact integer; cells are added in column
// order by fma(float(dot), weight_scale * activation_scale, acc), then, for types with a minimum,
// fma(-minimum, activation_sum, acc). So results are equal to the last bit wherever they are computed.
#pragma once

#include <cstdint>
#include <memory>

#include "weights/packed_matrix.h"

namespace bitqwen {

/// Activations of up to `max_columns` tokens, ready for the kernels. Reused from step to step.
class ActivationBatch {
 public:
  ActivationBatch(int max_columns, int64_t max_k);
  ~ActivationBatch();
  ActivationBatch(ActivationBatch&&) noexcept;

  /// Starts a new batch of `columns` vectors of `k` values at activation group `group`
  /// (0: float32 activations), in tiles of at most `widest` columns (0: what the live kernels take).
  void start(int columns, int64_t k, int group, int widest = 0);
  /// After start(): has set() make the tables that a generated kernel looks up in, if one is chosen for w.
  void make_tables(const PackedMatrix& w);
  /// Quantises column `column` from x: [k] float32. Different columns may be set by different threads.
  /// Not-a-number or infinite input is kept visible: the outputs become NaN.
  void set(int column, const float* x);

  struct Layout;  // kernels/ only
  const Layout& layout() const { return *layout_; }

 private:
  std::unique_ptr<Layout> layout_;
};

/// y[c * ldy + r] = sum_k w[r, k] x[c, k] for r in [row_begin, row_end), every column c.
/// row_begin is a multiple of kRowBlock; row_end too, or w.rows(). x was started with w.cols(),
/// w.activation_group() and tiles no wider than preferred_tile(). Thread-safe: threads call it for
/// different rows. Uses the kernels that a plan chose for w, else the live ones.
void multiply(const PackedMatrix& w, const ActivationBatch& x, float* y, int64_t ldy, int64_t row_begin,
              int64_t row_end);

/// Rows that one thread should take at a time for `columns` columns: large enough to pay for unpacking
/// a panel, small enough to share out. A multiple of kRowBlock.
int64_t preferred_rows(const PackedMatrix& w, int columns);

/// The widest tile of columns to start activations for w with. Batches that several matrices share take
/// the narrowest of them.
int preferred_tile(const PackedMatrix& w, int columns);

/// The layout of ternary weights for the live instruction set: five trits a byte where look-ups open them and
/// several threads have less bandwidth each than one has arithmetic; two bits elsewhere.
TernaryLayout preferred_ternary_layout(int threads);

}  // namespace bitqwen
