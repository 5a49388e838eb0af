// Codebooks of matrices: fitting them, choosing codes, the file's bytes.
#include "quant/codebook.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#include "bindings/bindings.h"
#include "errors.h"
#include "quant/codebook_sweep.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Codebook = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

const gguf::TypeInfo& codebook_type(uint32_t id) {
  const gguf::TypeInfo* info = gguf::find_type(id);
  if (!info) throw Error(ErrorKind::kArgument, "tensor type " + std::to_string(id) + " is not known");
  return *info;
}

template <class Value>
nb::ndarray<nb::numpy, Value, nb::ndim<2>> new_matrix(size_t rows, size_t cols) {
  auto* raw = new Value[rows * cols];
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<Value*>(p); });
  return nb::ndarray<nb::numpy, Value, nb::ndim<2>>(raw, {rows, cols}, owner);
}

WeightedMatrix weighted(const Matrix& matrix, const std::optional<Vector>& importance) {
  WeightedMatrix result{
      matrix.data(), static_cast<int64_t>(matrix.shape(0)), static_cast<int64_t>(matrix.shape(1)), {}};
  if (importance) result.importance = {importance->data(), importance->size()};
  return result;
}

std::span<const int8_t> points(const Codebook& codebook) { return {codebook.data(), codebook.size()}; }

auto fit(uint32_t type, const Matrix& matrix, const std::optional<Vector>& importance, uint64_t seed,
         int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const WeightedMatrix source = weighted(matrix, importance);
  std::vector<int8_t> found;
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    found = fit_codebook(info.type, source, seed, pool);
  }
  auto out = new_matrix<int8_t>(info.codebook.entries, info.codebook.dims);
  std::copy(found.begin(), found.end(), out.data());
  return out;
}

nb::tuple assign(uint32_t type, const Codebook& codebook, const Matrix& matrix,
                 const std::optional<Vector>& importance, int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const WeightedMatrix source = weighted(matrix, importance);
  auto codes = new_matrix<uint8_t>(matrix.shape(0), matrix.shape(1) / 2);
  auto scales = new_matrix<float>(matrix.shape(0), matrix.shape(1) / kCodebookBlock);
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    assign_codes(info.type, points(codebook), source, codes.data(), scales.data(), pool);
  }
  return nb::make_tuple(codes, scales);
}

auto pack(uint32_t type, const Codes& codes, const Matrix& scales, int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const size_t rows = codes.shape(0), cols = codes.shape(1) * 2;
  if (scales.shape(0) != rows || scales.shape(1) * kCodebookBlock != cols) {
    throw Error(ErrorKind::kArgument,
                std::to_string(scales.shape(0)) + " x " + std::to_string(scales.shape(1)) +
                    " scales for codes of " + std::to_string(rows) + " x " + std::to_string(cols) +
                    " values: one for each " + std::to_string(kCodebookBlock) + " values of a row is needed");
  }
  const size_t bytes = rows * scales.shape(1) * info.block_bytes;
  auto data = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    pack_codes(info.type, codes.data(), scales.data(), static_cast<int64_t>(rows), static_cast<int64_t>(cols),
               data.get(), pool);
  }
  uint8_t* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(raw, {bytes}, owner);
}

nb::tuple error_of(uint32_t type, const Codebook& codebook, const Bytes& bytes, const Matrix& matrix,
                   int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const WeightedMatrix source = weighted(matrix, std::nullopt);
  if (bytes.size() != static_cast<size_t>(source.rows * (source.cols / info.block_size)) * info.block_bytes) {
    throw Error(ErrorKind::kArgument, std::to_string(bytes.size()) + " bytes are not a " +
                                          std::string(info.name) + " matrix of " +
                                          std::to_string(source.rows) + " x " + std::to_string(source.cols));
  }
  EncodeResult result;
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    result = packed_error(info.type, points(codebook), bytes.data(), source, pool);
  }
  return nb::make_tuple(result.error, result.energy);
}

template <class Value>
using Mutable = nb::ndarray<Value, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check_shape(bool fits, const char* what) {
  if (!fits) throw Error(ErrorKind::kArgument, std::string(what) + " has another shape than the sweep needs");
}

template <class Values>
void check_values(const PairSweep& sweep, const Values& values, const char* what) {
  check_shape(values.shape(0) == static_cast<size_t>(sweep.rows) &&
                  values.shape(1) == 2 * static_cast<size_t>(sweep.pairs),
              what);
}

template <class Values>
void check_square(const PairSweep& sweep, const Values& values, const char* what) {
  const auto columns = 2 * static_cast<size_t>(sweep.pairs);
  check_shape(values.shape(0) == columns && values.shape(1) == columns, what);
}

PairSweep pair_sweep(const Mutable<uint8_t>& codes, const Indices& block_of, const Mutable<float>& scales) {
  check_shape(block_of.shape(0) == codes.shape(1), "block_of");
  check_shape(scales.shape(0) == codes.shape(0), "scales");
  for (size_t i = 0; i < block_of.shape(0); ++i) {
    const int32_t block = block_of.data()[i];
    check_shape(block >= 0 && static_cast<size_t>(block) < scales.shape(1), "block_of");
  }
  return {static_cast<int64_t>(codes.shape(0)),
          static_cast<int>(codes.shape(1)),
          block_of.data(),
          static_cast<int64_t>(scales.shape(1)),
          scales.data(),
          codes.data()};
}

void feedback(uint32_t type, const Codebook& codebook, Mutable<uint8_t> codes, const Indices& block_of,
              Mutable<float> scales, const Matrix& weights, const Matrix& factor, const Vector& costs,
              Mutable<float> target, int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const PairSweep sweep = pair_sweep(codes, block_of, scales);
  check_values(sweep, weights, "weights");
  check_values(sweep, target, "target");
  check_square(sweep, factor, "factor");
  check_shape(costs.shape(0) == factor.shape(0), "costs");
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  feedback_pairs(info.type, points(codebook), sweep, weights.data(), factor.data(), costs.data(),
                 target.data(), pool);
}

int64_t descent(uint32_t type, const Codebook& codebook, Mutable<uint8_t> codes, const Indices& block_of,
                Mutable<float> scales, const Matrix& moments, Mutable<float> error, Mutable<float> gradient,
                bool fit_scales, int threads) {
  const gguf::TypeInfo& info = codebook_type(type);
  const PairSweep sweep = pair_sweep(codes, block_of, scales);
  check_square(sweep, moments, "moments");
  check_values(sweep, error, "error");
  check_values(sweep, gradient, "gradient");
  check_shape(!fit_scales || 2 * sweep.pairs % kCodebookBlock == 0, "a sweep whose scales are fitted");
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  return descend_pairs(info.type, points(codebook), sweep, moments.data(), error.data(), gradient.data(),
                       fit_scales, pool);
}

}  // namespace

void bind_codebook(nb::module_& m) {
  m.def("fit_codebook", &fit, "type"_a, "matrix"_a, "importance"_a.none() = nb::none(), "seed"_a = 0,
        "threads"_a = 0, "The codebook, int8 [entries, dims], that suits a float32 matrix [rows, cols].");
  m.def("assign_codes", &assign, "type"_a, "codebook"_a, "matrix"_a, "importance"_a.none() = nb::none(),
        "threads"_a = 0, "(codes uint8 [rows, cols / 2], scales float32 [rows, cols / 128]) of a matrix.");
  m.def("pack_codes", &pack, "type"_a, "codes"_a, "scales"_a, "threads"_a = 0, "The file's bytes for them.");
  m.def("codebook_error", &error_of, "type"_a, "codebook"_a, "bytes"_a, "matrix"_a, "threads"_a = 0,
        "(sum of squared errors, sum of squares) of a matrix and its bytes.");
  m.def("feedback_pairs", &feedback, "type"_a, "codebook"_a, "codes"_a, "block_of"_a, "scales"_a, "weights"_a,
        "factor"_a, "costs"_a, "target"_a, "threads"_a = 0);
  m.def("descend_pairs", &descent, "type"_a, "codebook"_a, "codes"_a, "block_of"_a, "scales"_a, "moments"_a,
        "error"_a, "gradient"_a, "fit_scales"_a, "threads"_a = 0);
}

}  // namespace bitqwen
