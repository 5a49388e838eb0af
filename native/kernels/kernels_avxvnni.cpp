// The dot-product instruction in its VEX encoding, for CPUs without AVX-512.
#define BITQWEN_DPBUSD256 _mm256_dpbusd_avx_epi32
#define BITQWEN_VECTORS "kernels/vectors_avx2.h"
#include "kernels/simd_multiply.h"

namespace bitqwen {
namespace {

constexpr KernelTable kTable = make_table(Isa::kAvxVnni);

}  // namespace

const KernelTable& avxvnni_kernels() { return kTable; }

}  // namespace bitqwen
