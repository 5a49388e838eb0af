// Which kernels multiply which matrices, and how that work is cut up: what the tuner found on this machine.
//
// A plan is about speed alone. Every kernel gives the same bits for any rows taken at a time and any tile
// of columns (kernels/multiply.h), so no plan, however odd, changes what a model computes. Where a plan
// says nothing, the live instruction set and sizes that suit most machines are taken.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "kernels/generated.h"
#include "kernels/isa.h"
#include "threads/pool.h"
#include "weights/layout.h"

namespace bitqwen {

/// "Q4_K", "ternary", ...: how a plan names a packed format. The layouts of ternary weights share a name:
/// the number of threads, for which a plan is made, says which of them it is.
std::string_view format_name(Format format);
/// The first format of that name. Throws Error(kArgument) for a name that no format has.
Format format_named(std::string_view name);

/// What a product is: all matrices of one packed format that one loop multiplies with the same activations.
struct ProductKey {
  Format format = Format::kF32;
  int64_t rows = 0;  // of all of them together
  int64_t cols = 0;
  Batch batch = Batch::kOne;
  auto operator<=>(const ProductKey&) const = default;
};

/// How a product is computed.
struct ProductPlan {
  Isa isa = Isa::kScalar;    // also of what a generated kernel leaves to built-in ones
  int64_t rows = 0;          // that a thread takes at a time, a multiple of kRowBlock; 0: the default
  int tile_columns = 0;      // of a tile of activations; 0: as many as the kernels take
  std::string library = {};  // of generated kernels; empty: built-in ones
};

/// The built-in kernels of `plan`, ready for use; throws Error(kArgument) for an instruction set that does
/// not run here, and for rows or columns that cannot be.
KernelChoice kernel_choice(const ProductPlan& plan);

class KernelPlan {
 public:
  /// Throws as kernel_choice() does.
  void set(const ProductKey& key, const ProductPlan& plan);
  bool empty() const { return choices_.empty(); }
  /// Tells matrices that one loop multiplies with the same activations how that is done best. Packs them
  /// for generated kernels where those were chosen; a matrix that they cannot take keeps the built-in ones.
  void apply(std::span<PackedMatrix* const> product, ThreadPool& pool) const;

 private:
  struct Chosen {
    KernelChoice choice;
    std::shared_ptr<const GeneratedLibrary> library;
  };
  std::map<ProductKey, Chosen> choices_;
};

/// Tells one matrix how products with batches of that kind are computed.
void choose(PackedMatrix& w, Batch batch, const KernelChoice& choice);

}  // namespace bitqwen
