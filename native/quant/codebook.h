// Vector quantisation with a codebook: vectors of weights become codes of the nearest points, every block of
// a row gets a scale. Three steps, each of use alone: the codebook of a matrix (Lloyd's algorithm), codes
// and scales for a codebook, and the file's bytes for codes and scales. The same results on every CPU and
// for every thread count.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gguf/types.h"
#include "quant/encode.h"
#include "threads/pool.h"

namespace bitqwen {

/// A float32 matrix to encode: values [rows][cols], importance [cols] or empty.
struct WeightedMatrix {
  const float* values;
  int64_t rows;
  int64_t cols;
  std::span<const float> importance;
};

/// Values of a block, all of which share one scale.
constexpr int kCodebookBlock = 128;

/// The codebook, [entries][dims], of least weighted squared error that Lloyd's algorithm finds on a sample of
/// the matrix's blocks; `seed` chooses the sample. Throws Error(kArgument) as encode() does, and for a type
/// without a codebook.
std::vector<int8_t> fit_codebook(gguf::TensorType type, const WeightedMatrix& matrix, uint64_t seed,
                                 ThreadPool& pool);

/// For every block the scale, and for every vector the code, of least weighted squared error.
/// codes: [rows][cols / dims], scales: [rows][cols / 128], exactly representable as float16.
/// Vectors stand in the order of the file: pair 4 * g + j of a block is its columns 8 * g + j and
/// 8 * g + 4 + j.
void assign_codes(gguf::TensorType type, std::span<const int8_t> codebook, const WeightedMatrix& matrix,
                  uint8_t* codes, float* scales, ThreadPool& pool);

/// The file's bytes; out: rows * cols / 128 * block_bytes. Throws Error(kArgument) for a code out of range.
void pack_codes(gguf::TensorType type, const uint8_t* codes, const float* scales, int64_t rows, int64_t cols,
                uint8_t* out, ThreadPool& pool);

/// What the bytes lose of the matrix.
EncodeResult packed_error(gguf::TensorType type, std::span<const int8_t> codebook, const uint8_t* bytes,
                          const WeightedMatrix& matrix, ThreadPool& pool);

}  // namespace bitqwen
