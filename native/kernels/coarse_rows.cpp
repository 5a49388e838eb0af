#include "kernels/coarse_rows.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "kernels/coarse_block.h"
#include "kernels/hadamard.h"
#include "kernels/isa.h"

namespace bitqwen {
namespace {

CoarseBlock current_coarse_block() {
  switch (current_isa()) {
#if defined(BITQWEN_BUILT_X86)
    case Isa::kAvx2:
    case Isa::kAvxVnni: return coarse_block_avx2;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Vbmi: return coarse_block_avx512;
#endif
    default: return coarse_block_baseline;
  }
}

}  // namespace

int coarse_mix(int64_t cols) {
  const int64_t mix = std::min<int64_t>(cols & -cols, kMostMixed);
  return mix < kCoarseBlock ? 0 : static_cast<int>(mix);
}

PackedMatrix coarse_rows(const PackedMatrix& w, std::span<const float> signs, std::span<float> spreads,
                         ThreadPool& pool) {
  PackedMatrix coarse = PackedMatrix::blank(Format::kV2, w.rows(), w.cols(), weight_pages(pool));
  PackedMatrix::Layout& out = coarse.layout();
  // Two columns a code: the levels of the first in its low two bits, of the second in the next two.
  constexpr std::array<int, 4> kLevels = {-kOuterLevel, -kInnerLevel, kInnerLevel, kOuterLevel};
  for (int code = 0; code < 64; ++code) {
    for (int dim = 0; dim < 2; ++dim) {
      out.points.dims[dim][code] =
          static_cast<uint8_t>(kLevels[code >> (2 * dim) & 3] - out.info().point_offset);
    }
  }
  const CoarseBlock coarse_block = current_coarse_block();
  const int mix = coarse_mix(w.cols());
  pool.first_touch({}, out.blocks(), 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t block = begin; block < end; ++block) {
      std::array<float, kRowBlock> of_block;
      coarse_block(w.layout(), block, signs.data(), mix, out, of_block.data());
      const int64_t first = block * kRowBlock;
      std::copy_n(of_block.begin(), std::min<int64_t>(kRowBlock, w.rows() - first), spreads.begin() + first);
    }
  });
  return coarse;
}

void rotate_state(std::span<const float> signs, float* x) {
  const auto cols = static_cast<int64_t>(signs.size());
  const int mix = coarse_mix(cols);
  const float scale = 1.0f / std::sqrt(static_cast<float>(mix));
  for (int64_t i = 0; i < cols; ++i) x[i] *= signs[static_cast<size_t>(i)] * scale;
  for (int64_t block = 0; block < cols; block += mix) hadamard(x + block, mix);
}

}  // namespace bitqwen
