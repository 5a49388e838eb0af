// The sweeps of a row, written once; no contraction, so that each instruction set chooses the same codes.
#pragma once

#include <algorithm>
#include <cmath>

#include "half.h"
#include "quant/codebook.h"
#include "quant/codebook_sweep_rows.h"
#include "quant/lanes.h"

namespace bitqwen {
namespace {

constexpr int kPairsOfBlock = kCodebookBlock / 2;

/// The code of least a x x + 2 b x y + c y y - 2 (u x + v y) at scale * point = (x, y); the first of several.
inline int cheapest(const AllPoints& points, float scale, float a, float b, float c, float u, float v) {
  const float aa = a * scale * scale, bb = 2.0f * b * scale * scale, cc = c * scale * scale;
  const float uu = 2.0f * u * scale, vv = 2.0f * v * scale;
  alignas(64) static constexpr float kCounting[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                          8, 9, 10, 11, 12, 13, 14, 15};
  Floats least = splat(3.4e38f), code = {}, here = load(kCounting);
  for (int i = 0; i < points.count; i += kLanes) {
    const Floats x = load(points.at[0] + i), y = load(points.at[1] + i);
    const Floats cost = x * (x * aa + y * bb - uu) + y * (y * cc - vv);
    for (int p = 0; p < kParts; ++p) {
      const IntPart better = cost.part[p] < least.part[p];
      least.part[p] = better ? cost.part[p] : least.part[p];
      code.part[p] = better ? here.part[p] : code.part[p];
    }
    here = here + static_cast<float>(kLanes);
  }
  const auto smaller = [](auto left, auto right) { return left < right ? left : right; };
  const Floats all = splat(folded(least, smaller));
  for (int p = 0; p < kParts; ++p) {
    const IntPart as_cheap = least.part[p] == all.part[p];
    code.part[p] = as_cheap ? code.part[p] : FloatPart{} + static_cast<float>(AllPoints::kMost);
  }
  return static_cast<int>(folded(code, smaller));
}

inline void add_scaled(float* y, const float* x, float factor, int n) {
  for (int i = 0; i < n; ++i) y[i] += factor * x[i];
}

inline void add_both(float* y, const float* first, float x, const float* second, float z, int n) {
  for (int i = 0; i < n; ++i) y[i] += x * first[i] + z * second[i];
}

void fit_scale(const AllPoints& points, const uint8_t* codes, const float* moments, int n, int first,
               float& scale, float* error, float* gradient, float* product) {
  // Along the points q of a block: slope g.q, curvature q'Hq.
  std::fill(product, product + n, 0.0f);
  float slope = 0.0f, curvature = 0.0f;
  const auto point = [&](int column) { return points.at[column % 2][codes[column / 2]]; };
  for (int c = first; c < first + kCodebookBlock; c += 2) {
    add_both(product, moments + int64_t{c} * n, point(c), moments + int64_t{c + 1} * n, point(c + 1), n);
    slope += gradient[c] * point(c) + gradient[c + 1] * point(c + 1);
  }
  for (int c = first; c < first + kCodebookBlock; ++c) curvature += product[c] * point(c);
  if (!(curvature > 0.0f)) return;
  const float better = half_to_float(float_to_half(std::max(0.0f, scale + slope / curvature)));
  const float change = scale - better;
  // Rounding may have undone the gain.
  if (change == 0.0f || !std::isfinite(better) || change * (2.0f * slope + change * curvature) >= 0.0f)
    return;
  scale = better;
  for (int c = first; c < first + kCodebookBlock; ++c) error[c] += change * point(c);
  add_scaled(gradient, product, change, n);
}

void feedback_row(const AllPoints& points, const PairSweep& sweep, int64_t row, const float* weights,
                  const float* feedback, const float* costs, float* target) {
  const int n = 2 * sweep.pairs;
  float* t = target + row * n;
  const float* w = weights + row * n;
  for (int p = 0; p < sweep.pairs; ++p) {
    const int i = 2 * p, j = i + 1;
    const float scale = sweep.scales[row * sweep.blocks + sweep.block_of[p]];
    // With x and y chosen, errors of tx - x and of ty + (wx - x) f - y are left, which cost dx and dy.
    const float f = feedback[int64_t{i} * n + j], dx = costs[i], dy = costs[j];
    const float all = t[j] + w[i] * f;
    const int code = cheapest(points, scale, dx + dy * f * f, dy * f, dy, dx * t[i] + dy * f * all, dy * all);
    sweep.codes[row * sweep.pairs + p] = static_cast<uint8_t>(code);
    t[i] = w[i] - scale * points.at[0][code];
    t[j] = w[j] - scale * points.at[1][code];
    const float* rest = feedback + j + 1;
    add_both(t + j + 1, rest + int64_t{i} * n, t[i], rest + int64_t{j} * n, t[j], n - j - 1);
  }
}

int64_t descend_row(const AllPoints& points, const PairSweep& sweep, int64_t row, const float* moments,
                    float* error, float* gradient, bool fit_scales, float* product) {
  const int n = 2 * sweep.pairs;
  float* e = error + row * n;
  float* g = gradient + row * n;
  uint8_t* codes = sweep.codes + row * sweep.pairs;
  float* scales = sweep.scales + row * sweep.blocks;
  int64_t changes = 0;
  for (int p = 0; p < sweep.pairs; ++p) {
    const int i = 2 * p, j = i + 1;
    const float* first = moments + int64_t{i} * n;
    const float* second = moments + int64_t{j} * n;
    const float a = first[i], b = first[j], c = second[j];
    const float scale = scales[sweep.block_of[p]];
    const float x = scale * points.at[0][codes[p]], y = scale * points.at[1][codes[p]];
    // The cost of moving from (x, y), by slope and curvature.
    const int code = cheapest(points, scale, a, b, c, g[i] + a * x + b * y, g[j] + b * x + c * y);
    if (code == codes[p]) continue;
    const float dx = x - scale * points.at[0][code], dy = y - scale * points.at[1][code];
    if (dx * (2.0f * g[i] + a * dx + 2.0f * b * dy) + dy * (2.0f * g[j] + c * dy) >= 0.0f) continue;
    codes[p] = static_cast<uint8_t>(code);
    e[i] += dx;
    e[j] += dy;
    add_both(g, first, dx, second, dy, n);
    ++changes;
  }
  if (!fit_scales) return changes;
  for (int p = 0; p < sweep.pairs; p += kPairsOfBlock) {
    fit_scale(points, codes, moments, n, 2 * p, scales[sweep.block_of[p]], e, g, product);
  }
  return changes;
}

}  // namespace
}  // namespace bitqwen
