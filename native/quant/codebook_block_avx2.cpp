#include "quant/codebook_block_impl.h"

namespace bitqwen {

void fit_block_avx2(const Points& points, const PairBlock& block, std::span<const float> starts, int rounds,
                    bool as_half, BlockCodes& out) {
  fit_block(points, block, starts, rounds, as_half, out);
}

}  // namespace bitqwen
