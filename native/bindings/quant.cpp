// quantize: a float32 matrix to a tensor type's bytes.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>

#include "bindings/bindings.h"
#include "errors.h"
#include "quant/encode.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

Fit fit_named(const std::string& name) {
  if (name == "plain") return Fit::kPlain;
  if (name == "mse") return Fit::kMse;
  if (name == "ternary") return Fit::kTernary;
  if (name == "absmean") return Fit::kAbsmean;
  throw Error(ErrorKind::kArgument, "fit '" + name + "' is not known; plain, mse, ternary and absmean are");
}

const gguf::TypeInfo& type_of(uint32_t id) {
  const gguf::TypeInfo* info = gguf::find_type(id);
  if (!info) throw Error(ErrorKind::kArgument, "tensor type " + std::to_string(id) + " is not known");
  return *info;
}

nb::tuple quantize(uint32_t type, const std::string& fit, const Matrix& matrix,
                   std::optional<Vector> importance, int threads) {
  const gguf::TypeInfo& info = type_of(type);
  const auto rows = static_cast<int64_t>(matrix.shape(0)), cols = static_cast<int64_t>(matrix.shape(1));
  if (cols < 1 || cols % info.block_size != 0) {
    throw Error(ErrorKind::kArgument, "rows of " + std::to_string(cols) + " values do not fit " +
                                          std::string(info.name) + " blocks of " +
                                          std::to_string(info.block_size));
  }
  const size_t bytes = static_cast<size_t>(rows * (cols / info.block_size)) * info.block_bytes;
  auto data = std::make_unique_for_overwrite<uint8_t[]>(bytes);
  EncodeResult result;
  const Fit how = fit_named(fit);
  {
    nb::gil_scoped_release release;
    ThreadPool pool(threads);
    std::span<const float> weights;
    if (importance) weights = {importance->data(), importance->size()};
    result = encode(info.type, how, matrix.data(), rows, cols, weights, data.get(), pool);
  }
  uint8_t* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  return nb::make_tuple(nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(raw, {bytes}, owner), result.error,
                        result.energy);
}

}  // namespace

void bind_quant(nb::module_& m) {
  m.def("quantize", &quantize, "type"_a, "fit"_a, "matrix"_a, "importance"_a.none() = nb::none(),
        "threads"_a = 0,
        "(bytes, sum of squared errors, sum of squares) of a float32 matrix [rows, cols] in a tensor type.");
  m.def(
      "can_quantize",
      [](uint32_t type, const std::string& fit) { return can_encode(type_of(type).type, fit_named(fit)); },
      "type"_a, "fit"_a);
}

}  // namespace bitqwen
