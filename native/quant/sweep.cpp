#include "quant/sweep.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "half.h"

namespace bitqwen {
namespace {

constexpr int64_t kGrain = 4;  // rows

int nearest_code(float value, float step, float offset, const GridShape& grid) {
  if (step == 0.0f) return std::clamp(0, grid.low, grid.high);
  // Clamped as a float: a value far outside must not overflow the integer.
  const float code =
      std::clamp((value + offset) / step, static_cast<float>(grid.low), static_cast<float>(grid.high));
  return static_cast<int>(std::lrint(code));
}

/// A step as the file can hold it: so many units, or a float16.
float holdable(float step, float unit, const UnitRange& range) {
  if (range.high == 0) return half_to_float(float_to_half(step));
  if (unit == 0.0f) return 0.0f;
  const float number = std::clamp(step / unit, static_cast<float>(range.low), static_cast<float>(range.high));
  return unit * static_cast<float>(std::lrint(number));
}

void add_scaled(float* y, const float* x, float factor, int n) {
  for (int i = 0; i < n; ++i) y[i] += factor * x[i];
}

}  // namespace

void feedback_sweep(const SweepBlock& block, const float* weights, const float* feedback, float* target,
                    ThreadPool& pool) {
  const int n = block.columns;
  pool.parallel_for(block.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float* t = target + r * n;
      const float* w = weights + r * n;
      for (int c = 0; c < n; ++c) {
        const int64_t g = r * block.groups + block.group_of[c];
        const int code = nearest_code(t[c], block.steps[g], block.offsets[g], block.grid);
        block.codes[r * n + c] = static_cast<int8_t>(code);
        const float lost = w[c] - (block.steps[g] * static_cast<float>(code) - block.offsets[g]);
        t[c] = lost;
        add_scaled(t + c + 1, feedback + int64_t{c} * n + c + 1, lost, n - c - 1);
      }
    }
  });
}

int64_t descent_sweep(const SweepBlock& block, const float* moments, float* error, float* gradient,
                      bool fit_steps, const float* units, const UnitRange& range, ThreadPool& pool) {
  const int n = block.columns;
  std::atomic<int64_t> changes = 0;
  pool.parallel_for(block.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    int64_t mine = 0;
    std::vector<float> product(static_cast<size_t>(n));
    for (int64_t r = begin; r < end; ++r) {
      float* e = error + r * n;
      float* gr = gradient + r * n;
      int8_t* codes = block.codes + r * n;
      for (int c = 0; c < n; ++c) {
        const float curvature = moments[int64_t{c} * n + c];
        if (!(curvature > 0.0f)) continue;
        const int64_t g = r * block.groups + block.group_of[c];
        const float step = block.steps[g];
        // The weight is e + value; the best value is the present one plus gradient / curvature.
        const float value = step * static_cast<float>(codes[c]) - block.offsets[g];
        const int code = nearest_code(value + gr[c] / curvature, step, block.offsets[g], block.grid);
        if (code == codes[c]) continue;
        const float change = step * static_cast<float>(codes[c] - code);
        codes[c] = static_cast<int8_t>(code);
        e[c] += change;
        add_scaled(gr, moments + int64_t{c} * n, change, n);
        ++mine;
      }
      if (!fit_steps) continue;
      const int group = block.grid.group;
      for (int first = 0; first < n; first += group) {
        const int64_t g = r * block.groups + block.group_of[first];
        // Along the codes q of a group: slope g.q, curvature q'Hq.
        std::fill(product.begin(), product.end(), 0.0f);
        for (int c = first; c < first + group; ++c) {
          if (codes[c] != 0) add_scaled(product.data(), moments + int64_t{c} * n, codes[c], n);
        }
        float slope = 0.0f, curvature = 0.0f;
        for (int c = first; c < first + group; ++c) {
          slope += gr[c] * static_cast<float>(codes[c]);
          curvature += product[static_cast<size_t>(c)] * static_cast<float>(codes[c]);
        }
        if (!(curvature > 0.0f)) continue;
        const float old = block.steps[g];
        const float step = holdable(old + slope / curvature, units[g], range);
        const float change = old - step;
        // Rounding to the file's steps may have undone the gain.
        if (change == 0.0f || !std::isfinite(step) || change * (2.0f * slope + change * curvature) >= 0.0f) {
          continue;
        }
        block.steps[g] = step;
        for (int c = first; c < first + group; ++c) e[c] += change * static_cast<float>(codes[c]);
        add_scaled(gr, product.data(), change, n);
      }
    }
    changes += mine;
  });
  return changes;
}

}  // namespace bitqwen
