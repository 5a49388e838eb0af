#include "kernels/coarse_block_impl.h"

namespace bitqwen {

void coarse_block_avx512(const PackedMatrix::Layout& w, int64_t block, const float* signs, int mix,
                         PackedMatrix::Layout& out, float* spreads) {
  coarse_block(w, block, signs, mix, out, spreads);
}

}  // namespace bitqwen
