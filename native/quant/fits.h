// Scales of least weighted squared error. Compiled anew with each instruction set's flags; neither
// contraction nor the C library's exp and log, so that every one of them gives the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "half.h"
#include "quant/lanes.h"

namespace bitqwen {
namespace {

// Below this a scale's inverse overflows; as float16 it is zero anyway.
constexpr float kLeastValue = 1e-30f;

void store_u16(uint8_t* p, uint16_t v) { std::memcpy(p, &v, sizeof v); }

// The scale as the file will hold it.
float through_half(float scale) { return half_to_float(float_to_half(scale)); }

// ------------------------------------------------------- value = scale * code: few levels, exactly

/// Indices of magnitudes [kSize], the largest first; equal ones by index.
template <int kSize>
void descending(const float* magnitudes, int32_t* order) {
  constexpr int kStep = kLanes / kParts;
  IntPart lane;
  for (int i = 0; i < kStep; ++i) lane[i] = i;
  for (int i = 0; i < kSize; i += kStep) {
    FloatPart mine;
    std::memcpy(&mine, magnitudes + i, sizeof mine);
    const IntPart index = lane + i;
    IntPart place = {};  // how many come before
    for (int j = 0; j < kSize; ++j) {
      const FloatPart other = FloatPart{} + magnitudes[j];
      const IntPart earlier = IntPart{} + j < index;  // comparisons are -1 where true
      place -= (other > mine) | ((other == mine) & earlier);
    }
    for (int l = 0; l < kStep; ++l) order[place[l]] = i + l;
  }
}

/// The scale (of either sign) that minimises sum w (x - scale * code)^2 over codes -1 to kHigh, the codes
/// being the nearest ones. As the scale shrinks from infinity, codes grow at known places: between them the
/// best scale has a closed form, so that walking through them all finds the optimum.
template <int kSize, int kHigh>
float fit_few_levels(const float* x, const float* w) {
  static_assert(kHigh == 1 || kHigh == 2);
  alignas(64) float magnitudes[kSize];
  for (int i = 0; i < kSize; i += kLanes) store(magnitudes + i, absolute(load(x + i)));
  int32_t order[kSize];
  descending<kSize>(magnitudes, order);
  if (!(magnitudes[order[0]] > kLeastValue)) return 0.0f;
  double best_gain = 0.0, best = 0.0;
  for (int sign = 1; sign >= (kHigh == 1 ? 1 : -1); sign -= 2) {
    double xc = 0.0, cc = 0.0;  // sums of weight * value * code and of weight * code^2
    const auto grow = [&](int i, int code) {
      xc += static_cast<double>(w[i]) * magnitudes[i];
      cc += static_cast<double>(w[i]) * (2 * code - 1);
      if (cc > 0.0 && xc * xc > best_gain * cc) {  // xc^2 / cc: how much of sum w x^2 is explained
        best_gain = xc * xc / cc;
        best = sign * xc / cc;
      }
    };
    int next = 0;  // of those that can take code 2
    for (int k = 0; k <= kSize; ++k) {
      if constexpr (kHigh == 2) {
        // Code 2 begins at 1.5 scales where code 1 began at 0.5.
        const float reached = k < kSize ? 3.0f * magnitudes[order[k]] : 0.0f;
        for (; next < k && (k == kSize || magnitudes[order[next]] >= reached); ++next) {
          const int i = order[next];
          if (static_cast<float>(sign) * x[i] > 0.0f) grow(i, 2);
        }
      }
      if (k < kSize) grow(order[k], 1);
    }
  }
  return static_cast<float>(best);
}

// ------------------------------------------------------ value = scale * code: many levels, by search

struct SymmetricSums {
  float xc = 0;  // sum of weight * value * code
  float cc = 0;  // sum of weight * code^2
};

template <int kSize>
SymmetricSums symmetric_sums(const float* x, const float* w, float inverse, float low, float high) {
  Floats xc = {}, cc = {};
  for (int i = 0; i < kSize; i += kLanes) {
    const Floats v = load(x + i);
    const Floats c = clamped(rounded(v * inverse), low, high);
    const Floats wc = load(w + i) * c;
    xc += wc * v;
    cc += wc * c;
  }
  return {sum(xc), sum(cc)};
}

/// The scale (of either sign) that minimises sum w (x - scale * code)^2 for codes -levels to levels - 1, by
/// a geometric search from where the largest value just fits down to `least_of_rms` times the root mean
/// square, and least-squares steps on the best.
template <int kSize>
float fit_symmetric(const float* x, const float* w, float levels, float least_of_rms, float ratio) {
  Floats largest = {}, squares = {};
  for (int i = 0; i < kSize; i += kLanes) {
    const Floats v = load(x + i);
    largest = maximum(largest, absolute(v));
    squares += v * v;
  }
  const float top = maximum(largest);
  // Values whose squares vanish have no scale that a file could hold, and would put no end to the search.
  if (!(sum(squares) > 0.0f)) return 0.0f;
  float best_gain = 0.0f, best = 0.0f;
  const auto consider = [&](float scale) {
    const SymmetricSums sums = symmetric_sums<kSize>(x, w, 1.0f / scale, -levels, levels - 1);
    if (sums.cc <= 0.0f) return;
    const float gain = sums.xc * sums.xc / sums.cc;  // how much of sum w x^2 is explained
    if (gain > best_gain) {
      best_gain = gain;
      best = sums.xc / sums.cc;
    }
  };
  float scale = top / (levels - 0.5f);
  const float least = std::min(top / levels * 0.8f, std::sqrt(sum(squares) / kSize) * least_of_rms);
  for (; scale >= least; scale *= ratio) {
    consider(scale);
    consider(-scale);
  }
  for (int i = 0; i < 3 && best != 0.0f; ++i) {
    const float before = best;
    consider(best);
    if (best == before) break;
  }
  return best;
}

template <int kSize>
void symmetric_codes(const float* x, float scale, float low, float high, int32_t* codes) {
  const float inverse = std::fabs(scale) > kLeastValue ? 1.0f / scale : 0.0f;
  for (int i = 0; i < kSize; i += kLanes) {
    store_as_integers(codes + i, clamped(rounded(load(x + i) * inverse), low, high));
  }
}

// ---------------------------------------------------------------- value = scale * code - minimum

struct Affine {
  float scale = 0, minimum = 0;  // both >= 0
};

struct AffineSums {
  float w = 0, wx = 0, wc = 0, wcc = 0, wxc = 0;
};

// Of kSize values with codes 0 to kCodes.
template <int kSize, int kCodes>
AffineSums affine_sums(const float* x, const float* w, float inverse, float minimum) {
  Floats sw = {}, swx = {}, swc = {}, swcc = {}, swxc = {};
  for (int i = 0; i < kSize; i += kLanes) {
    const Floats v = load(x + i), weight = load(w + i);
    const Floats c = clamped(rounded((v + minimum) * inverse), 0, kCodes);
    const Floats weighted = weight * c;
    sw += weight;
    swx += weight * v;
    swc += weighted;
    swcc += weighted * c;
    swxc += weighted * v;
  }
  return {sum(sw), sum(swx), sum(swc), sum(swcc), sum(swxc)};
}

/// Least squares for fixed codes with the minimum held at or above zero; what it explains of sum w x^2.
float solve_affine(const AffineSums& s, Affine& fit) {
  const float determinant = s.w * s.wcc - s.wc * s.wc;
  if (determinant > 0.0f) {
    const float scale = (s.w * s.wxc - s.wx * s.wc) / determinant;
    const float minimum = (s.wc * s.wxc - s.wcc * s.wx) / determinant;
    if (minimum >= 0.0f && scale > 0.0f) {
      fit = {scale, minimum};
      return scale * s.wxc - minimum * s.wx;
    }
  }
  if (s.wcc > 0.0f && s.wxc > 0.0f) {
    fit = {s.wxc / s.wcc, 0.0f};
    return fit.scale * s.wxc;
  }
  return -1.0f;
}

template <int kSize, int kCodes>
Affine fit_affine(const float* x, const float* w) {
  float low = 0.0f, high = 0.0f;
  for (int i = 0; i < kSize; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float range = high - low;
  if (!(range > kLeastValue)) return {};
  Affine best;
  float best_gain = 0.0f;
  const auto consider = [&](float inverse, float minimum) {
    Affine fit;
    const float gain = solve_affine(affine_sums<kSize, kCodes>(x, w, inverse, minimum), fit);
    if (gain > best_gain) {
      best_gain = gain;
      best = fit;
    }
  };
  // Up to half as many steps again as there are codes lie over the range (twice as many where codes are
  // few): what does not fit is clipped at both ends alike, or at the upper one alone.
  constexpr float kTop = kCodes, kStep = kCodes < 8 ? kTop / 16.0f : kTop / 30.0f;
  constexpr int kSteps = kCodes < 8 ? 21 : 17;
  for (int i = 0; i < kSteps; ++i) {
    const float steps = kTop - 2.0f * kStep + static_cast<float>(i) * kStep;
    consider(steps / range, -low);
    if (steps > kTop) {
      consider(steps / range, -low - (steps - kTop) / steps * range * 0.5f);
      if (kCodes < 8) consider(steps / range, -low - (steps - kTop) / steps * range);
    }
  }
  for (int i = 0; i < 3 && best.scale > kLeastValue; ++i) {
    const float before = best_gain;
    consider(1.0f / best.scale, best.minimum);
    if (best_gain == before) break;
  }
  return best;
}

}  // namespace
}  // namespace bitqwen
