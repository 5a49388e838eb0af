// A weight matrix as the kernels want it: made once, at load, from any tensor type.
//
// Rows are interleaved in blocks of kRowBlock, so that a SIMD lane belongs to one row and no
// horizontal addition is ever needed. One layout serves every instruction set.
#pragma once

#include <cstdint>
#include <memory>

#include "gguf/tensor.h"
#include "threads/pool.h"
#include "weights/format.h"
#include "weights/packed_buffer.h"

namespace bitqwen {

/// Rows of one block of the packed layout; work is split between threads in multiples of it.
constexpr int kRowBlock = 16;

/// How ternary types lie in memory: codes of two bits open faster, five to a byte are a sixth fewer bytes.
enum class TernaryLayout : uint8_t { kTwoBits, kFiveInByte };

/// The pages of weights that the pool's threads read: parts for threads of different memory nodes share none.
inline Pages weight_pages(const ThreadPool& pool) { return pool.nodes() > 1 ? Pages::kOwn : Pages::kShared; }

class PackedMatrix {
 public:
  /// Packs `tensor` with all threads of `pool`. Throws Error(kUnsupported) for a type without kernels.
  /// A TQ2_0 tensor with the code 3, which is no trit, gets two bits whatever `ternary` says. `part`: which
  /// row blocks these are of a product that several matrices make in one loop; by default all.
  static PackedMatrix pack(const gguf::TensorView& tensor, ThreadPool& pool,
                           TernaryLayout ternary = TernaryLayout::kTwoBits, ThreadPool::Part part = {});

  /// A matrix whose bytes are all zero, to be filled by kernels/ and weights/.
  static PackedMatrix blank(Format format, int64_t rows, int64_t cols, Pages pages = Pages::kShared);
  /// A matrix of `rows` rows whose row blocks are this one's, over and over: for measurements.
  PackedMatrix repeated(int64_t rows, ThreadPool& pool) const;

  int64_t rows() const;
  int64_t cols() const;
  int64_t bytes() const;  // of the packed weights
  /// Columns that share one int8 activation scale (32, 64 or 128); 0 when the kernel multiplies
  /// float32 activations (float weights).
  int activation_group() const;
  /// Whether it is to be multiplied with rotated inputs (gguf/rotation.h).
  bool rotated() const;
  /// Writes one row as float32, rotated if the matrix is: the embedding look-up. out: [cols]
  void dequantize_row(int64_t row, float* out) const;

  PackedMatrix(PackedMatrix&&) noexcept;
  PackedMatrix& operator=(PackedMatrix&&) noexcept;
  ~PackedMatrix();

  struct Layout;  // kernels/ and weights/ only
  const Layout& layout() const { return *layout_; }
  Layout& layout() { return *layout_; }

 private:
  explicit PackedMatrix(std::unique_ptr<Layout> layout);
  std::unique_ptr<Layout> layout_;
};

}  // namespace bitqwen
