// Activations to int8, written once over two functions of BITQWEN_VECTORS: the scalar kernel's bits.
//
//   uint32_t largest_magnitude(values, count)         the greatest of the values' bits without their signs
//   void quantize_32(values, inverse, codes, sums)    32 codes, and the sums of the first and the last 16
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"
#include "kernels/simd_inline.h"
#include BITQWEN_VECTORS

namespace bitqwen {
namespace {

void quantize_activations(const float* values, ActivationBatch::Layout& x, int column) {
  const int begin = x.tile_begin(column);
  const int n = x.tile_size(begin);
  const int i = column - begin;
  const int64_t groups = x.groups();
  int8_t* codes = x.codes + begin * x.k + 4 * i;
  const int64_t first = begin * groups + i;
  for (int64_t g = 0; g < groups; ++g, values += x.group) {
    const uint32_t largest = largest_magnitude(values, x.group);
    float magnitude;
    std::memcpy(&magnitude, &largest, sizeof magnitude);
    const bool finite = largest < 0x7f800000;
    const bool zero = !finite || magnitude < kTinyActivation;
    const float inverse = zero ? 0.0f : 127.0f / magnitude;
    const float scale = !finite ? __builtin_nanf("") : zero ? 0.0f : magnitude / 127.0f;
    int32_t total = 0;
    for (int j = 0; j < x.group; j += 32) {
      alignas(32) int8_t rounded[32];
      int32_t sums[2] = {0, 0};
      if (zero) {  // 0 * infinity is no zero
        std::memset(rounded, 0, sizeof rounded);
      } else {
        quantize_32(values + j, inverse, rounded, sums);
      }
      if (n == 1) {
        std::memcpy(codes, rounded, 32);
      } else {
        for (int s = 0; s < 8; ++s) std::memcpy(codes + 4 * s * n, rounded + 4 * s, 4);
      }
      codes += 32 * n;
      total += sums[0] + sums[1];
      if (x.has_halves()) {
        for (int h = 0; h < 2; ++h) {
          const int64_t at = begin * 2 * groups + (2 * g + h) * n + i;
          x.half_sums[at] = static_cast<float>(sums[h]);
          x.half_offsets[at] = -sums[h];
        }
      }
    }
    x.scales[first + g * n] = scale;
    x.sums[first + g * n] = static_cast<float>(total);
    x.offsets[first + g * n] = -total;
  }
}

}  // namespace
}  // namespace bitqwen
