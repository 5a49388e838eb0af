// The search of codes and scale, written once over 16 floats at a time; no contraction, so that each
// instruction set finds the same.
#pragma once

#include "half.h"
#include "quant/codebook_block.h"
#include "quant/lanes.h"

namespace bitqwen {
namespace {

/// Sums over a block for chosen points p: the error is sum(w x x) - 2 s products + s s norms.
struct BlockSums {
  float products = 0;  // w x p
  float norms = 0;     // w p p

  /// The scale that suits the chosen points, and what the error loses by it.
  float scale() const { return norms > 0.0f ? products / norms : 0.0f; }
  float gain() const { return norms > 0.0f ? products * scale() : 0.0f; }
};

/// The nearest points at `scale`. A point's score is w x p - scale / 2 * w p p: half of what it takes off the
/// error, over the scale.
template <bool kMirrored>
BlockSums nearest(const Points& points, const PairBlock& block, float scale, uint8_t* codes) {
  const float half_scale = 0.5f * scale;
  Floats products = {}, norms = {};
  for (int i = 0; i < kPairs; i += kLanes) {
    const Floats w0 = load(block.weights[0] + i), w1 = load(block.weights[1] + i);
    const Floats wx0 = w0 * load(block.values[0] + i), wx1 = w1 * load(block.values[1] + i);
    Floats best = splat(-3.4e38f), best_product = {}, best_norm = {};
    IntPart best_entry[kParts] = {};
    for (int e = 0; e < points.entries; ++e) {
      const float p0 = points.at[0][e], p1 = points.at[1][e];
      const Floats product = wx0 * p0 + wx1 * p1;
      const Floats norm = w0 * (p0 * p0) + w1 * (p1 * p1);
      const Floats score = (kMirrored ? absolute(product) : product) - norm * half_scale;
      for (int p = 0; p < kParts; ++p) {
        const IntPart better = score.part[p] > best.part[p];
        best.part[p] = better ? score.part[p] : best.part[p];
        best_product.part[p] = better ? product.part[p] : best_product.part[p];
        best_norm.part[p] = better ? norm.part[p] : best_norm.part[p];
        best_entry[p] = better ? IntPart{} + e : best_entry[p];
      }
    }
    products += kMirrored ? absolute(best_product) : best_product;
    norms += best_norm;
    if (codes) {
      int32_t entries[kLanes];
      float signs[kLanes];
      std::memcpy(entries, best_entry, sizeof entries);
      store(signs, best_product);
      for (int j = 0; j < kLanes; ++j) {
        const bool mirror = kMirrored && signs[j] < 0.0f;
        codes[i + j] = static_cast<uint8_t>(entries[j] + (mirror ? points.entries : 0));
      }
    }
  }
  return {sum(products), sum(norms)};
}

template <bool kMirrored>
void fit(const Points& points, const PairBlock& block, std::span<const float> starts, int rounds,
         bool as_half, BlockCodes& out) {
  BlockSums best;
  for (const float start : starts) {
    BlockSums sums;
    float scale = start;
    for (int round = 0; round < rounds; ++round) {
      sums = nearest<kMirrored>(points, block, scale, nullptr);
      if (!(sums.scale() > 0.0f)) break;
      scale = sums.scale();
    }
    if (sums.gain() > best.gain()) best = sums;
  }
  out.scale = best.scale();
  if (as_half) out.scale = half_to_float(float_to_half(out.scale));
  out.gain = best.gain();
  nearest<kMirrored>(points, block, out.scale, out.codes);
}

inline void fit_block(const Points& points, const PairBlock& block, std::span<const float> starts, int rounds,
                      bool as_half, BlockCodes& out) {
  (points.mirrored ? fit<true> : fit<false>)(points, block, starts, rounds, as_half, out);
}

}  // namespace
}  // namespace bitqwen
