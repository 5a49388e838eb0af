// What the tuner measures with: products of one shape, and how the engine names packed formats.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "bindings/plans.h"
#include "measure/product_timer.h"
#include "system/limits.h"
#include "weights/repack.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitqwen {
namespace {

using measure::ProductTimer;
using Plan = std::tuple<std::string, int64_t, int, std::string>;  // the end of a PlanRow

Isa isa_named(const std::string& name) {
  for (const Isa isa : usable_isas()) {
    if (isa_name(isa) == name) return isa;
  }
  return choose_isa(name);  // says why it cannot be
}

gguf::TensorType tensor_type(uint32_t id) {
  const gguf::TypeInfo* info = gguf::find_type(id);
  if (!info || !find_repacker(info->type, TernaryLayout::kTwoBits).pack_block) {
    throw Error(ErrorKind::kArgument, std::string(gguf::known_type_name(id)) + " has no kernels");
  }
  return info->type;
}

}  // namespace

Batch batch_named(const std::string& name) {
  if (name == "1") return Batch::kOne;
  if (name == "2-4") return Batch::kFew;
  if (name == "prefill") return Batch::kMany;
  throw Error(ErrorKind::kArgument, "batch '" + name + "' is not known; '1', '2-4' and 'prefill' are");
}

KernelPlan kernel_plan(const std::vector<PlanRow>& rows) {
  KernelPlan plan;
  for (const auto& [format, matrix_rows, cols, batch, isa, rows_at_a_time, tile, library] : rows) {
    plan.set({format_named(format), matrix_rows, cols, batch_named(batch)},
             {isa_named(isa), rows_at_a_time, tile, library});
  }
  return plan;
}

void bind_tuning(nb::module_& m) {
  nb::class_<ProductTimer>(m, "ProductTimer",
                           "Random weights of one shape, to time products with; for one thread of Python.")
      .def(
          "__init__",
          [](ProductTimer* self, uint32_t type, int64_t rows, int64_t cols, int threads, int64_t least_bytes,
             uint64_t seed) {
            const gguf::TensorType of = tensor_type(type);
            nb::gil_scoped_release release;
            new (self) ProductTimer(of, rows, cols, threads, least_bytes, seed);
          },
          "type"_a, "rows"_a, "cols"_a, "threads"_a, "least_bytes"_a, "seed"_a = 1)
      .def_prop_ro("threads", &ProductTimer::threads)
      .def_prop_ro("copies", &ProductTimer::copies)
      .def_prop_ro("bytes", &ProductTimer::bytes, "Bytes of packed weights that one product reads.")
      .def_prop_ro("generated_bytes", &ProductTimer::generated_bytes,
                   "The same of the generated kernels that were timed last; 0 before any were.")
      .def_prop_ro("format", [](const ProductTimer& self) { return std::string(format_name(self.format())); })
      .def(
          "seconds",
          [](ProductTimer& self, int columns, const Plan& plan, int products) {
            const auto& [isa, rows, tile, library] = plan;
            const ProductPlan native{isa_named(isa), rows, tile, library};
            nb::gil_scoped_release release;
            return self.seconds(columns, native, products);
          },
          "columns"_a, "plan"_a, "products"_a = 0,
          "Seconds of one product by a plan (instruction set, rows at a time, tile columns, library): the "
          "mean over `products`, or over one for each copy of the weights. Activations are rounded anew each "
          "time. Raises UsageError where generated kernels cannot take these weights.")
      .def(
          "default_plan",
          [](const ProductTimer& self, int columns) {
            const ProductPlan plan = self.default_plan(columns);
            return Plan(std::string(isa_name(plan.isa)), plan.rows, plan.tile_columns, "");
          },
          "columns"_a, "What the engine does without a plan.")
      .def(
          "isas",
          [](const ProductTimer& self) {
            std::vector<std::tuple<std::string, int>> found;
            for (const Isa isa : self.distinct_isas()) {
              found.emplace_back(std::string(isa_name(isa)), ProductTimer::widest_tile(isa));
            }
            return found;
          },
          "[(instruction set, widest tile)] of those whose kernels for this format differ; the live one "
          "first.");
  m.def("available_cores", &available_cores, "Threads that the engine uses by default.");
  m.def(
      "packed_format",
      [](uint32_t type) {
        return std::string(format_name(find_repacker(tensor_type(type), TernaryLayout::kTwoBits).format));
      },
      "type"_a, "How plans name what a tensor type is packed to.");
  m.def(
      "check_plan", [](const std::vector<PlanRow>& rows) { kernel_plan(rows); }, "rows"_a,
      "Raises UsageError for a plan that cannot be used here.");
  m.def(
      "load_generated",
      [](const std::string& path) {
        std::vector<std::tuple<int64_t, int64_t, int64_t>> found;
        nb::gil_scoped_release release;
        const auto library = GeneratedLibrary::load(path);
        for (const GeneratedKernel& k : library->kernels()) {
          found.emplace_back(k.rows, k.cols, k.tile_rows);
        }
        return found;
      },
      "path"_a,
      "[(rows, columns, rows of a tile)] of a library of generated kernels, each proved against the scalar "
      "kernels; raises ModelFileError or UnsupportedModelError that says why it cannot be used.");
}

}  // namespace bitqwen
