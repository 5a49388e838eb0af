#include "quant/codebook_sweep.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf/codebook.h"
#include "half.h"
#include "quant/codebook.h"

namespace bitqwen {
namespace {

constexpr int64_t kGrain = 4;  // rows
constexpr int kMostPoints = 64;
constexpr int kPairsOfBlock = kCodebookBlock / 2;

/// All points, those that are opposite to one in the codebook written out: code c is point c.
struct AllPoints {
  int count = 0;
  float at[2][kMostPoints] = {};  // [dim][code]
};

AllPoints all_points(gguf::TensorType type, std::span<const int8_t> codebook) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  if (info.codebook.entries == 0) {
    throw Error(ErrorKind::kUnsupported, std::string(info.name) + " has no codebook");
  }
  gguf::check_codebook(info, codebook, "matrix");
  const int entries = static_cast<int>(info.codebook.entries);
  AllPoints points{.count = entries * (info.codebook.mirrored ? 2 : 1)};
  for (int c = 0; c < points.count; ++c) {
    for (int dim = 0; dim < 2; ++dim) {
      const auto value = static_cast<float>(codebook[c % entries * 2 + dim]);
      points.at[dim][c] = c < entries ? value : -value;
    }
  }
  return points;
}

/// The code of least a x x + 2 b x y + c y y - 2 (u x + v y) at scale * point = (x, y).
int cheapest(const AllPoints& points, float scale, float a, float b, float c, float u, float v) {
  float cost[kMostPoints];
  const float aa = a * scale * scale, bb = 2.0f * b * scale * scale, cc = c * scale * scale;
  const float uu = 2.0f * u * scale, vv = 2.0f * v * scale;
  for (int i = 0; i < points.count; ++i) {
    const float x = points.at[0][i], y = points.at[1][i];
    cost[i] = x * (aa * x + bb * y - uu) + y * (cc * y - vv);
  }
  return static_cast<int>(std::min_element(cost, cost + points.count) - cost);
}

void add_scaled(float* y, const float* x, float factor, int n) {
  for (int i = 0; i < n; ++i) y[i] += factor * x[i];
}

void add_both(float* y, const float* first, float x, const float* second, float z, int n) {
  for (int i = 0; i < n; ++i) y[i] += x * first[i] + z * second[i];
}

void fit_scale(const AllPoints& points, const uint8_t* codes, const float* moments, int n, int first,
               float& scale, float* error, float* gradient, float* product) {
  // Along the points q of a block: slope g.q, curvature q'Hq.
  std::fill(product, product + n, 0.0f);
  float slope = 0.0f, curvature = 0.0f;
  const auto point = [&](int column) { return points.at[column % 2][codes[column / 2]]; };
  for (int c = first; c < first + kCodebookBlock; ++c) {
    add_scaled(product, moments + int64_t{c} * n, point(c), n);
    slope += gradient[c] * point(c);
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

}  // namespace

void feedback_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                    const float* weights, const float* feedback, const float* costs, float* target,
                    ThreadPool& pool) {
  const AllPoints points = all_points(type, codebook);
  const int n = 2 * sweep.pairs;
  pool.parallel_for(sweep.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float* t = target + r * n;
      const float* w = weights + r * n;
      for (int p = 0; p < sweep.pairs; ++p) {
        const int i = 2 * p, j = i + 1;
        const float scale = sweep.scales[r * sweep.blocks + sweep.block_of[p]];
        // With x and y chosen, errors of tx - x and of ty + (wx - x) f - y are left, which cost dx and dy.
        const float f = feedback[int64_t{i} * n + j], dx = costs[i], dy = costs[j];
        const float all = t[j] + w[i] * f;
        const int code =
            cheapest(points, scale, dx + dy * f * f, dy * f, dy, dx * t[i] + dy * f * all, dy * all);
        sweep.codes[r * sweep.pairs + p] = static_cast<uint8_t>(code);
        t[i] = w[i] - scale * points.at[0][code];
        t[j] = w[j] - scale * points.at[1][code];
        const int rest = n - j - 1;
        add_both(t + j + 1, feedback + int64_t{i} * n + j + 1, t[i], feedback + int64_t{j} * n + j + 1, t[j],
                 rest);
      }
    }
  });
}

int64_t descend_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                      const float* moments, float* error, float* gradient, bool fit_scales,
                      ThreadPool& pool) {
  const AllPoints points = all_points(type, codebook);
  const int n = 2 * sweep.pairs;
  const int64_t count = sweep.rows * sweep.pairs;
  if (std::any_of(sweep.codes, sweep.codes + count, [&](uint8_t code) { return code >= points.count; })) {
    throw Error(ErrorKind::kArgument,
                "a code is out of range: there are codes from 0 to " + std::to_string(points.count - 1));
  }
  std::atomic<int64_t> changes = 0;
  pool.parallel_for(sweep.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    int64_t mine = 0;
    std::vector<float> product(static_cast<size_t>(n));
    for (int64_t r = begin; r < end; ++r) {
      float* e = error + r * n;
      float* g = gradient + r * n;
      uint8_t* codes = sweep.codes + r * sweep.pairs;
      float* scales = sweep.scales + r * sweep.blocks;
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
        ++mine;
      }
      if (!fit_scales) continue;
      for (int p = 0; p < sweep.pairs; p += kPairsOfBlock) {
        fit_scale(points, codes, moments, n, 2 * p, scales[sweep.block_of[p]], e, g, product.data());
      }
    }
    changes += mine;
  });
  return changes;
}

}  // namespace bitqwen
