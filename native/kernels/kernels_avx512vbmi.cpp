#define BITQWEN_VECTORS "kernels/vectors_avx512.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

// Only look-ups gain from VBMI: everything else is what CPUs without it run.
KernelTable make() {
  KernelTable table = avx512vnni_kernels();
  table.isa = Isa::kAvx512Vbmi;
  table.multiply[static_cast<int>(Format::kTernary5)] = multiply_format<Format::kTernary5>;
  table.multiply[static_cast<int>(Format::kV2)] = multiply_format<Format::kV2>;
  table.multiply[static_cast<int>(Format::kV2_5)] = multiply_format<Format::kV2_5>;
  table.multiply[static_cast<int>(Format::kV3)] = multiply_format<Format::kV3>;
  return table;
}

}  // namespace

const KernelTable& avx512vbmi_kernels() {
  static const KernelTable table = make();
  return table;
}

}  // namespace bitqwen
