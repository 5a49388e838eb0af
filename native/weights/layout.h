// What a PackedMatrix holds, for the rooms weights/ and kernels/ only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "weights/format.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

/// A codebook as the kernels look it up: a byte for every code and coordinate, from 0 to 63. Codes of fewer
/// than six bits repeat, so that bits above a code do not matter where an instruction takes six.
struct CodePoints {
  alignas(64) uint8_t dims[2][64] = {};
};

/// Batches that a plan tells apart: of 1 column, of 2 to 4, and of more.
enum class Batch : uint8_t { kOne, kFew, kMany };
constexpr int kBatchKinds = 3;
constexpr Batch batch_of(int columns) {
  return columns == 1 ? Batch::kOne : columns <= 4 ? Batch::kFew : Batch::kMany;
}

struct KernelTable;
struct GeneratedWeights;

/// How products with one kind of batch are computed: kernels/plan.h. Zeros stand for the default.
struct KernelChoice {
  const KernelTable* kernels = nullptr;
  int64_t rows = 0;        // that a thread takes at a time
  int tile_columns = 0;    // of a tile of activations
  bool generated = false;  // by the kernel that belongs to Layout::generated
};

struct PackedMatrix::Layout {
  Format format = Format::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t units = 0;        // of a row block: cols / unit
  int64_t block_bytes = 0;  // of a row block: units * unit_bytes
  PackedBuffer buffer;      // ceil(rows / kRowBlock) row blocks, in groups of kGroupBlocks
  CodePoints points;        // of codebook formats
  bool rotated = false;     // gguf/rotation.h: inputs are to be rotated too
  std::array<KernelChoice, kBatchKinds> choices;      // indexed by Batch
  std::shared_ptr<const GeneratedWeights> generated;  // the same weights again, as a generated kernel wants

  const FormatInfo& info() const { return format_info(format); }
  int64_t blocks() const { return (rows + kRowBlock - 1) / kRowBlock; }
  int64_t stripe_units() const { return kStripe / info().unit; }
  int64_t unit_offset(int64_t block, int64_t unit) const {
    const int64_t first = block / kGroupBlocks * kGroupBlocks;  // of the group
    const int64_t together = blocks() - first < kGroupBlocks ? blocks() - first : kGroupBlocks;
    const int64_t begin = unit / stripe_units() * stripe_units();  // of the stripe
    const int64_t length = units - begin < stripe_units() ? units - begin : stripe_units();
    const int64_t before = first * units + together * begin + (block - first) * length;
    return (before + unit - begin) * info().unit_bytes();
  }
  /// Unit `unit` of row block `block`. Those behind it follow without a gap as far as the stripe goes.
  const uint8_t* unit(int64_t block, int64_t unit) const { return buffer.data() + unit_offset(block, unit); }
};

}  // namespace bitqwen
