// One table of function pointers for each instruction set: all that differs between CPUs.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/activations.h"
#include "kernels/isa.h"
#include "weights/layout.h"

namespace bitqwen {

struct KernelTable {
  /// The contract of bitqwen::multiply, for one format.
  using Multiply = void (*)(const PackedMatrix::Layout& w, const ActivationBatch::Layout& x, float* y,
                            int64_t ldy, int64_t row_begin, int64_t row_end);
  /// The contract of ActivationBatch::set, for integer activations.
  using Quantize = void (*)(const float* values, ActivationBatch::Layout& x, int column);

  Isa isa = Isa::kScalar;
  int tile_columns = 1;  // that one pass over packed weights can take
  Quantize quantize = nullptr;
  std::array<Multiply, kFormatCount> multiply = {};
};

const KernelTable& scalar_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avxvnni_kernels();
const KernelTable& avx512_kernels();
const KernelTable& avx512vnni_kernels();
const KernelTable& avx512vbmi_kernels();
const KernelTable& neon_kernels();
const KernelTable& neon_dotprod_kernels();
const KernelTable& neon_i8mm_kernels();

/// Rows that a thread takes at a time where no plan says otherwise; a multiple of kRowBlock.
int64_t default_rows(const PackedMatrix::Layout& w, int columns, const KernelTable& kernels);
/// The table of `isa`; throws Error(kArgument) where that does not run.
const KernelTable& kernels_of(Isa isa);
/// The table of the live instruction set; throws as current_isa() does.
const KernelTable& current_kernels();

}  // namespace bitqwen
