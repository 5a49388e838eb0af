// quantize: a float32 matrix to a tensor type's bytes.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>

#include "bindings/bindings.h"
#include "errors.h"
#include "quant/encode.h"
#include "quant/grid.h"
#include "quant/sweep.h"

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

template <class Value>
using Mutable = nb::ndarray<Value, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class Value>
Value* new_array(size_t count, nb::capsule& owner) {
  auto data = std::make_unique_for_overwrite<Value[]>(count);
  Value* raw = data.release();
  owner = nb::capsule(raw, [](void* p) noexcept { delete[] static_cast<Value*>(p); });
  return raw;
}

GridShape grid_of(uint32_t type) {
  const auto shape = grid_shape(type_of(type).type);
  if (!shape) {
    throw Error(ErrorKind::kUnsupported, std::string(type_of(type).name) + " is no grid of steps and codes");
  }
  return *shape;
}

void check_bytes(uint32_t type, size_t bytes, int64_t rows, int64_t cols) {
  const gguf::TypeInfo& info = type_of(type);
  if (rows < 0 || cols < 1 || cols % info.block_size != 0 ||
      bytes != static_cast<size_t>(rows * (cols / info.block_size)) * info.block_bytes) {
    throw Error(ErrorKind::kArgument, std::to_string(bytes) + " bytes are no " + std::string(info.name) +
                                          " matrix of " + std::to_string(rows) + " x " +
                                          std::to_string(cols));
  }
}

void check_shape(bool fits, const char* what) {
  if (!fits) throw Error(ErrorKind::kArgument, std::string(what) + " has another shape than the block needs");
}

nb::tuple read_grid_arrays(uint32_t type, const Bytes& data, int64_t rows, int64_t cols) {
  const GridShape shape = grid_of(type);
  check_bytes(type, data.size(), rows, cols);
  const size_t count = static_cast<size_t>(rows * cols);
  const size_t groups = count / static_cast<size_t>(shape.group);
  nb::capsule owners[4];
  GridArrays out{new_array<float>(groups, owners[0]), new_array<float>(groups, owners[1]),
                 new_array<float>(groups, owners[2]), new_array<int8_t>(count, owners[3])};
  {
    nb::gil_scoped_release release;
    read_grid(type_of(type).type, data.data(), rows * cols, out);
  }
  using Floats = nb::ndarray<nb::numpy, float, nb::ndim<2>>;
  const std::initializer_list<size_t> small = {static_cast<size_t>(rows), groups / std::max<size_t>(1, rows)};
  const std::initializer_list<size_t> large = {static_cast<size_t>(rows), static_cast<size_t>(cols)};
  return nb::make_tuple(Floats(out.steps, small, owners[0]), Floats(out.offsets, small, owners[1]),
                        Floats(out.units, small, owners[2]),
                        nb::ndarray<nb::numpy, int8_t, nb::ndim<2>>(out.codes, large, owners[3]));
}

void write_grid_arrays(uint32_t type, const Mutable<const float>& steps, const Mutable<const int8_t>& codes,
                       nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> data) {
  const GridShape shape = grid_of(type);
  const auto rows = static_cast<int64_t>(codes.shape(0)), cols = static_cast<int64_t>(codes.shape(1));
  check_bytes(type, data.size(), rows, cols);
  check_shape(steps.shape(0) == codes.shape(0) && steps.shape(1) * shape.group == codes.shape(1), "steps");
  nb::gil_scoped_release release;
  write_grid(type_of(type).type, steps.data(), codes.data(), rows * cols, data.data());
}

SweepBlock sweep_block(uint32_t type, const Mutable<int8_t>& codes, const Indices& group_of,
                       const Mutable<float>& steps, const Mutable<const float>& offsets) {
  check_shape(group_of.shape(0) == codes.shape(1), "group_of");
  check_shape(steps.shape(0) == codes.shape(0), "steps");
  check_shape(offsets.shape(0) == steps.shape(0) && offsets.shape(1) == steps.shape(1), "offsets");
  for (size_t i = 0; i < group_of.shape(0); ++i) {
    const int32_t group = group_of.data()[i];
    check_shape(group >= 0 && static_cast<size_t>(group) < steps.shape(1), "group_of");
  }
  return {static_cast<int64_t>(codes.shape(0)),
          static_cast<int>(codes.shape(1)),
          group_of.data(),
          static_cast<int64_t>(steps.shape(1)),
          steps.data(),
          offsets.data(),
          grid_of(type),
          codes.data()};
}

void feedback(uint32_t type, Mutable<int8_t> codes, const Indices& group_of, Mutable<float> steps,
              const Mutable<const float>& offsets, const Mutable<const float>& weights,
              const Mutable<const float>& factor, Mutable<float> target, int threads) {
  const SweepBlock block = sweep_block(type, codes, group_of, steps, offsets);
  check_shape(weights.shape(0) == codes.shape(0) && weights.shape(1) == codes.shape(1), "weights");
  check_shape(target.shape(0) == codes.shape(0) && target.shape(1) == codes.shape(1), "target");
  check_shape(factor.shape(0) == codes.shape(1) && factor.shape(1) == codes.shape(1), "factor");
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  feedback_sweep(block, weights.data(), factor.data(), target.data(), pool);
}

int64_t descent(uint32_t type, Mutable<int8_t> codes, const Indices& group_of, Mutable<float> steps,
                const Mutable<const float>& offsets, const Mutable<const float>& units,
                const Mutable<const float>& moments, Mutable<float> error, Mutable<float> gradient,
                bool fit_steps, int threads) {
  const SweepBlock block = sweep_block(type, codes, group_of, steps, offsets);
  check_shape(units.shape(0) == steps.shape(0) && units.shape(1) == steps.shape(1), "units");
  check_shape(moments.shape(0) == codes.shape(1) && moments.shape(1) == codes.shape(1), "moments");
  check_shape(error.shape(0) == codes.shape(0) && error.shape(1) == codes.shape(1), "error");
  check_shape(gradient.shape(0) == codes.shape(0) && gradient.shape(1) == codes.shape(1), "gradient");
  check_shape(!fit_steps || block.columns % block.grid.group == 0, "a block whose steps are fitted");
  const UnitRange range = unit_range(type_of(type).type);
  nb::gil_scoped_release release;
  ThreadPool pool(threads);
  return descent_sweep(block, moments.data(), error.data(), gradient.data(), fit_steps, units.data(), range,
                       pool);
}

}  // namespace

void bind_quant(nb::module_& m) {
  m.def("quantize", &quantize, "type"_a, "fit"_a, "matrix"_a, "importance"_a.none() = nb::none(),
        "threads"_a = 0,
        "(bytes, sum of squared errors, sum of squares) of a float32 matrix [rows, cols] in a tensor type.");
  m.def(
      "can_quantize",
      [](uint32_t type, const std::string& fit) {
        const gguf::TypeInfo& info = type_of(type);
        return fit == "lloyd" ? info.codebook.entries > 0 : can_encode(info.type, fit_named(fit));
      },
      "type"_a, "fit"_a);
  m.def(
      "grid_shape",
      [](uint32_t type) -> nb::object {
        const auto shape = grid_shape(type_of(type).type);
        if (!shape) return nb::none();
        return nb::make_tuple(shape->group, shape->low, shape->high);
      },
      "type"_a, "(weights a step, lowest code, highest code) of a tensor type, or None where it is no grid.");
  m.def("read_grid", &read_grid_arrays, "type"_a, "data"_a, "rows"_a, "cols"_a,
        "(steps, offsets, units, codes) of a matrix: value = step * code - offset.");
  m.def("write_grid", &write_grid_arrays, "type"_a, "steps"_a, "codes"_a, "data"_a,
        "Puts other steps and codes into a matrix's bytes.");
  m.def("feedback_sweep", &feedback, "type"_a, "codes"_a, "group_of"_a, "steps"_a, "offsets"_a, "weights"_a,
        "factor"_a, "target"_a, "threads"_a = 0);
  m.def("descent_sweep", &descent, "type"_a, "codes"_a, "group_of"_a, "steps"_a, "offsets"_a, "units"_a,
        "moments"_a, "error"_a, "gradient"_a, "fit_steps"_a, "threads"_a = 0);
}

}  // namespace bitqwen
