#define BITQWEN_VECTORS "kernels/vectors_neon.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kNeon);

}  // namespace

const KernelTable& neon_kernels() { return kTable; }

}  // namespace bitqwen
