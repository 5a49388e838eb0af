#include "kernels/plan.h"

#include <array>
#include <string>

#include "errors.h"
#include "kernels/table.h"

namespace bitqwen {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 32;

// Indexed by Format.
constexpr std::array<std::string_view, kFormatCount> kNames = {
    "F32",  "F16",  "BF16", "Q8_0", "Q4_0",    "Q4_1",    "Q5_0", "Q5_1", "Q2_K", "Q3_K",
    "Q4_K", "Q5_K", "Q6_K", "Q2_0", "ternary", "ternary", "V2",   "V2_5", "V3",
};
static_assert(!kNames.back().empty());

}  // namespace

std::string_view format_name(Format format) { return kNames[static_cast<size_t>(format)]; }

Format format_named(std::string_view name) {
  std::string known;
  for (int i = 0; i < kFormatCount; ++i) {
    if (kNames[i] == name) return static_cast<Format>(i);
    if (i > 0 && kNames[i] == kNames[i - 1]) continue;
    known += (i ? ", " : "") + std::string(kNames[i]);
  }
  throw Error(ErrorKind::kArgument, "no packed format is called \"" + std::string(name) + "\"",
              "choose one of: " + known);
}

KernelChoice kernel_choice(const ProductPlan& plan) {
  if (plan.rows < 0 || plan.rows % kRowBlock != 0 || plan.rows > kMostRows) {
    throw Error(ErrorKind::kArgument, std::to_string(plan.rows) + " rows at a time: a multiple of " +
                                          std::to_string(kRowBlock) + " is needed, or 0 for the default");
  }
  const KernelTable& kernels = kernels_of(plan.isa);
  if (plan.tile_columns < 0 || plan.tile_columns > kernels.tile_columns) {
    throw Error(ErrorKind::kArgument, "tiles of " + std::to_string(plan.tile_columns) + " columns: " +
                                          std::string(isa_name(plan.isa)) + " kernels take 1 to " +
                                          std::to_string(kernels.tile_columns) + ", or 0 for the default");
  }
  return {&kernels, plan.rows, plan.tile_columns};
}

void KernelPlan::set(const ProductKey& key, const ProductPlan& plan) {
  Chosen chosen{kernel_choice(plan), nullptr};
  if (!plan.library.empty()) chosen.library = GeneratedLibrary::load(plan.library);
  choices_[key] = std::move(chosen);
}

void KernelPlan::apply(std::span<PackedMatrix* const> product, ThreadPool& pool) const {
  if (empty()) return;
  ThreadPool::Part part;
  for (const PackedMatrix* matrix : product) part.of += matrix->rows();
  for (PackedMatrix* matrix : product) {
    const PackedMatrix::Layout& layout = matrix->layout();
    ProductKey key{format_named(format_name(layout.format)), 0, layout.cols, Batch::kOne};
    for (const PackedMatrix* other : product) {
      if (format_name(other->layout().format) == format_name(layout.format)) key.rows += other->rows();
    }
    for (int batch = 0; batch < kBatchKinds; ++batch) {
      key.batch = static_cast<Batch>(batch);
      const auto found = choices_.find(key);
      if (found == choices_.end()) continue;
      KernelChoice choice = found->second.choice;
      if (found->second.library)
        choice.generated = use_generated(*matrix, found->second.library, pool, part).empty();
      choose(*matrix, key.batch, choice);
    }
    part.first += matrix->rows();
  }
}

void choose(PackedMatrix& w, Batch batch, const KernelChoice& choice) {
  w.layout().choices[static_cast<size_t>(batch)] = choice;
}

}  // namespace bitqwen
