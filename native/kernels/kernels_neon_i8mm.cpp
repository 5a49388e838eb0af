#define BITQWEN_VECTORS "kernels/vectors_neon.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kNeonI8mm);

}  // namespace

const KernelTable& neon_i8mm_kernels() { return kTable; }

}  // namespace bitqwen
