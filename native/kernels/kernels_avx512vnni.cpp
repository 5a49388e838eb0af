#define BITQWEN_VECTORS "kernels/vectors_avx512.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kAvx512Vnni);

}  // namespace

const KernelTable& avx512vnni_kernels() { return kTable; }

}  // namespace bitqwen
