#include "kernels/multiply.h"

#include <algorithm>
#include <string>

#include "errors.h"
#include "kernels/activations.h"
#include "kernels/generated.h"
#include "kernels/table.h"

namespace bitqwen {
namespace {

constexpr int64_t kLine = 64;
int64_t aligned(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

const KernelChoice& choice_of(const PackedMatrix::Layout& w, int columns) {
  return w.choices[static_cast<size_t>(batch_of(columns))];
}

const KernelTable& kernels_for(const PackedMatrix::Layout& w, int columns) {
  const KernelTable* chosen = choice_of(w, columns).kernels;
  return chosen ? *chosen : current_kernels();
}

}  // namespace

ActivationBatch::ActivationBatch(int max_columns, int64_t max_k) : layout_(std::make_unique<Layout>()) {
  if (max_columns < 1 || max_k < 1) {
    throw Error(ErrorKind::kArgument, "an activation batch needs at least one column and one value, not " +
                                          std::to_string(max_columns) + " x " + std::to_string(max_k));
  }
  layout_->max_columns = max_columns;
  layout_->max_k = max_k;
}

ActivationBatch::~ActivationBatch() = default;
ActivationBatch::ActivationBatch(ActivationBatch&&) noexcept = default;

void ActivationBatch::start(int columns, int64_t k, int group, int widest) {
  Layout& x = *layout_;
  if (columns < 1 || columns > x.max_columns || k < 1 || k > x.max_k) {
    throw Error(ErrorKind::kArgument, std::to_string(columns) + " columns of " + std::to_string(k) +
                                          " activations: this batch holds 1 to " +
                                          std::to_string(x.max_columns) + " columns of at most " +
                                          std::to_string(x.max_k));
  }
  if ((group != 0 && group != 32 && group != 64 && group != 128) || (group != 0 && k % group != 0)) {
    throw Error(ErrorKind::kArgument, "activation group " + std::to_string(group) + " for " +
                                          std::to_string(k) +
                                          " values: allowed are 0, 32, 64 and 128, dividing the count");
  }
  // Memory for the largest batch, once for each of the two kinds of activations.
  const int64_t largest = static_cast<int64_t>(x.max_columns) * x.max_k;
  const int64_t groups = x.max_columns * ((x.max_k + 31) / 32);
  const int64_t code_bytes = aligned(largest), group_bytes = aligned(groups * 4),
                half_bytes = aligned(groups * 8);
  const int64_t needed = group == 0 ? largest * 4 : code_bytes + 3 * group_bytes + 2 * half_bytes;
  if (x.buffer.bytes() < needed) x.buffer = PackedBuffer(needed);
  uint8_t* p = x.buffer.data();
  const auto take = [&p](int64_t bytes) {
    uint8_t* field = p;
    p += bytes;
    return field;
  };
  if (group == 0) {
    x.values = reinterpret_cast<float*>(p);
  } else {
    x.codes = reinterpret_cast<int8_t*>(take(code_bytes));
    x.scales = reinterpret_cast<float*>(take(group_bytes));
    x.sums = reinterpret_cast<float*>(take(group_bytes));
    x.offsets = reinterpret_cast<int32_t*>(take(group_bytes));
    x.half_sums = reinterpret_cast<float*>(take(half_bytes));
    x.half_offsets = reinterpret_cast<int32_t*>(take(half_bytes));
  }
  x.columns = columns;
  x.k = k;
  x.group = group;
  x.generated = nullptr;
  // Tiles of equal size: 9 columns are 5 and 4, not 8 and a lonely one.
  if (widest < 1) widest = current_kernels().tile_columns;
  const int tiles = (columns + widest - 1) / widest;
  x.tile_columns = (columns + tiles - 1) / tiles;
}

void ActivationBatch::make_tables(const PackedMatrix& w) {
  const PackedMatrix::Layout& weights = w.layout();
  Layout& x = *layout_;
  if (!choice_of(weights, x.columns).generated || !weights.generated || x.generated) return;
  x.generated = weights.generated->kernel;
  x.column_bytes = aligned(x.generated->table_bytes) + aligned(x.groups() * 4);
  const int64_t needed = x.columns * x.column_bytes;
  if (x.tables.bytes() < needed) x.tables = PackedBuffer(needed);
}

void ActivationBatch::set(int column, const float* values) {
  Layout& x = *layout_;
  if (x.group != 0) {
    current_kernels().quantize(values, x, column);
    if (x.generated) make_generated_tables(x, column);
    return;
  }
  const int begin = x.tile_begin(column);
  const int n = x.tile_size(begin);
  float* out = x.values + begin * x.k + (column - begin);
  for (int64_t i = 0; i < x.k; ++i) out[i * n] = values[i];
}

void multiply(const PackedMatrix& w, const ActivationBatch& x, float* y, int64_t ldy, int64_t row_begin,
              int64_t row_end) {
  const PackedMatrix::Layout& weights = w.layout();
  const ActivationBatch::Layout& activations = x.layout();
  if (activations.k != weights.cols || activations.group != weights.info().group) {
    throw Error(ErrorKind::kArgument, "activations of " + std::to_string(activations.k) +
                                          " values in groups of " + std::to_string(activations.group) +
                                          " for weights of " + std::to_string(weights.cols) +
                                          " columns in groups of " + std::to_string(weights.info().group));
  }
  if (row_begin < 0 || row_begin % kRowBlock != 0 || row_end > weights.rows ||
      (row_end % kRowBlock != 0 && row_end != weights.rows)) {
    throw Error(ErrorKind::kArgument, "rows " + std::to_string(row_begin) + " to " + std::to_string(row_end) +
                                          " of " + std::to_string(weights.rows) +
                                          ": both must be multiples of " + std::to_string(kRowBlock) +
                                          ", or the end");
  }
  if (row_begin >= row_end) return;
  if (choice_of(weights, activations.columns).generated && fits_tables(weights, activations)) {
    multiply_generated(weights, activations, y, ldy, row_begin, row_end);
    return;
  }
  const KernelTable& kernels = kernels_for(weights, activations.columns);
  if (activations.tile_columns > kernels.tile_columns) {
    throw Error(ErrorKind::kArgument, "activations in tiles of " + std::to_string(activations.tile_columns) +
                                          " columns for kernels that take " +
                                          std::to_string(kernels.tile_columns));
  }
  kernels.multiply[static_cast<int>(weights.format)](weights, activations, y, ldy, row_begin, row_end);
}

int64_t default_rows(const PackedMatrix::Layout& w, int columns, const KernelTable& kernels) {
  // Decode: enough bytes for a memory stream to get up to speed. Prefill: weights that stay in the
  // second-level cache while tile after tile of activations passes over them.
  const int64_t bytes = columns <= kernels.tile_columns ? int64_t{64} << 10 : int64_t{256} << 10;
  // Whole groups of row blocks: only these are one stream.
  const int64_t grain = std::max<int64_t>(bytes / w.block_bytes / kGroupBlocks, 1) * kGroupBlocks;
  return std::min(grain, w.blocks()) * kRowBlock;
}

int64_t preferred_rows(const PackedMatrix& w, int columns) {
  const PackedMatrix::Layout& weights = w.layout();
  const int64_t chosen = choice_of(weights, columns).rows;
  if (chosen == 0) return default_rows(weights, columns, kernels_for(weights, columns));
  return std::min(chosen, weights.blocks() * kRowBlock);
}

int preferred_tile(const PackedMatrix& w, int columns) {
  const int chosen = choice_of(w.layout(), columns).tile_columns;
  return chosen > 0 ? chosen : kernels_for(w.layout(), columns).tile_columns;
}

TernaryLayout preferred_ternary_layout(int threads) {
  return threads > 1 && current_isa() == Isa::kAvx512Vbmi ? TernaryLayout::kFiveInByte
                                                          : TernaryLayout::kTwoBits;
}

}  // namespace bitqwen
