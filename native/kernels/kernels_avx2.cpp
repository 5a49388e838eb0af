#define BITQWEN_VECTORS "kernels/vectors_avx2.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kAvx2);

}  // namespace

const KernelTable& avx2_kernels() { return kTable; }

}  // namespace bitqwen
