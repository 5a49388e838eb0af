// Generated kernels: shared libraries of look-up-table products for ternary weights, written and compiled
// for one model's shapes by `bitqwen kernels`. One computes nothing before it has given the scalar kernels'
// bits here, and what it cannot do is left to the built-in kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/multiply.h"
#include "threads/pool.h"
#include "weights/layout.h"

namespace bitqwen {

/// One kernel, in the terms of src/bitqwen/kernels/templates/abi.h.in.
struct GeneratedKernel {
  int32_t index = 0;
  int64_t rows = 0, cols = 0;
  int64_t tile_rows = 0, tile_cols = 0, lanes = 0;
  int64_t cell = 0;  // columns of an activation scale
  int64_t unit = 0;  // columns of a weight scale
  int64_t tile_bytes = 0;
  int64_t table_bytes = 0;  // for all columns
  int32_t (*pack_tile)(int32_t, const int8_t* w, const uint16_t* scales, uint8_t* packed) = nullptr;
  int32_t (*prepare)(int32_t, const int8_t* x, int8_t* tables) = nullptr;
  int32_t (*multiply_tile)(int32_t, const uint8_t* packed, const int8_t* tables, const float* scales,
                           float* y, int64_t begin, int64_t end) = nullptr;
};

class GeneratedLibrary {
 public:
  /// Loads a library once, and proves each of its kernels. Throws Error(kFile) for a file that is none,
  /// Error(kUnsupported) for another interface, an instruction set that does not run here, or a kernel
  /// that gives other bits than the scalar ones.
  static std::shared_ptr<const GeneratedLibrary> load(const std::string& path);
  ~GeneratedLibrary();
  GeneratedLibrary(const GeneratedLibrary&) = delete;
  GeneratedLibrary& operator=(const GeneratedLibrary&) = delete;

  const std::vector<GeneratedKernel>& kernels() const { return kernels_; }
  /// The kernel for a matrix, by its shape and its scales' columns; nullptr if there is none.
  const GeneratedKernel* find(const PackedMatrix::Layout& w) const;

 private:
  explicit GeneratedLibrary(const std::string& path);

  void* handle_ = nullptr;
  std::vector<GeneratedKernel> kernels_;
};

/// A matrix as a generated kernel wants it: [rows / tile_rows] tiles.
struct GeneratedWeights {
  std::shared_ptr<const GeneratedLibrary> library;
  const GeneratedKernel* kernel = nullptr;
  PackedBuffer tiles;
};

/// Packs w once more, for a kernel of `library`, unless it is. Returns why it cannot be, or nothing. `part`:
/// which rows of its product these are, see ThreadPool::first_touch().
std::string use_generated(PackedMatrix& w, const std::shared_ptr<const GeneratedLibrary>& library,
                          ThreadPool& pool, ThreadPool::Part part = {});

/// Bytes of w's second packing; 0 where no generated kernel has one.
int64_t generated_bytes(const PackedMatrix& w);

// For multiply.cpp:

/// Makes the tables of a column, whose codes and scales are set.
void make_generated_tables(ActivationBatch::Layout& x, int column);
/// Whether x has the tables that w's generated kernel looks up in.
bool fits_tables(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x);
/// The contract of bitqwen::multiply.
void multiply_generated(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y,
                        int64_t ldy, int64_t row_begin, int64_t row_end);

}  // namespace bitqwen
