#define BITQWEN_VECTORS "kernels/vectors_avx512.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kAvx512);

}  // namespace

const KernelTable& avx512_kernels() { return kTable; }

}  // namespace bitqwen
