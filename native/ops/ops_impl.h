// The operations, written once; each ops_<isa>.cpp compiles them with its own flags. Everything is in
// an unnamed namespace: code with an instruction set's flags must not be shared by the linker.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "gguf/rotation.h"
#include "kernels/hadamard.h"
#include "ops/attention_impl.h"
#include "ops/ops.h"
#include "vectors.h"

namespace bitqwen {
namespace {

void rms_norm(const float* x, const float* weight, int64_t n, float epsilon, float* out) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Floats v = load(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (; i < n; ++i) total += x[i] * x[i];
  const float scale = 1.0f / std::sqrt(total / static_cast<float>(n) + epsilon);
  for (i = 0; i + kLanes <= n; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void add(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, load(x + i) + load(y + i));
  for (; i < n; ++i) x[i] += y[i];
}

Wide silu(Wide x) { return x / (1.0f + exponential(-x)); }

void swiglu(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_wide(gate + i, silu(load_wide(gate + i)) * load_wide(up + i));
  if (i < n) {
    float rest[2][kWidth] = {};
    std::memcpy(rest[0], gate + i, (n - i) * sizeof(float));
    std::memcpy(rest[1], up + i, (n - i) * sizeof(float));
    store_wide(rest[0], silu(load_wide(rest[0])) * load_wide(rest[1]));
    std::memcpy(gate + i, rest[0], (n - i) * sizeof(float));
  }
}

void rope(float* x, int heads, int head_dim, const float* cosines, const float* sines, float scale) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim) {
    for (int i = 0; i + kLanes <= half; i += kLanes) {
      const Floats first = load(x + i), second = load(x + half + i);
      const Floats c = load(cosines + i) * scale, s = load(sines + i) * scale;
      store(x + i, first * c - second * s);
      store(x + half + i, second * c + first * s);
    }
    for (int i = half / kLanes * kLanes; i < half; ++i) {
      const float first = x[i], second = x[half + i];
      const float c = cosines[i] * scale, s = sines[i] * scale;
      x[i] = first * c - second * s;
      x[half + i] = second * c + first * s;
    }
  }
}

template <int kDistance, size_t... kLane>
Wide swapped(Wide v, std::index_sequence<kLane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
#else  // gcc has that one since version 12
  return __builtin_shuffle(v, WideInts{(kLane ^ kDistance)...});
#endif
}

template <int kDistance, size_t... kLane>
constexpr Wide second_negated(std::index_sequence<kLane...>) {
  return Wide{(kLane & kDistance ? -1.0f : 1.0f)...};
}

// The transform's steps inside of a register: from neighbours to lanes half a register apart.
template <int kDistance>
Wide hadamard_lanes(Wide v) {
  if constexpr (kDistance >= kWidth) {
    return v;
  } else {
    constexpr std::make_index_sequence<kWidth> kLanesOf;
    const Wide sums = swapped<kDistance>(v, kLanesOf) + v * second_negated<kDistance>(kLanesOf);
    return hadamard_lanes<2 * kDistance>(sums);
  }
}

// In the order of hadamard() on floats: its bits.
template <bool kSignsFirst>
void hadamard_blocks(const float* x, const float* signs, int64_t n, float* out) {
  constexpr int kRegistersOf = gguf::kRotationBlock / kWidth;
  const float scale = 1.0f / std::sqrt(static_cast<float>(gguf::kRotationBlock));
  for (int64_t block = 0; block < n; block += gguf::kRotationBlock) {
    Wide v[kRegistersOf];
    for (int i = 0; i < kRegistersOf; ++i) {
      const Wide values = load_wide(x + block + i * kWidth);
      v[i] = hadamard_lanes<1>(kSignsFirst ? values * load_wide(signs + block + i * kWidth) : values);
    }
    hadamard(v, kRegistersOf);
    for (int i = 0; i < kRegistersOf; ++i) {
      const Wide values = kSignsFirst ? v[i] : v[i] * load_wide(signs + block + i * kWidth);
      store_wide(out + block + i * kWidth, values * scale);
    }
  }
}

// One scale for the `n` values x - centre (x alone without one): the largest becomes 127.
float quantize_block(const float* x, const float* centre, int n, int8_t* out, int stride) {
  const auto value = [&](int i) { return centre != nullptr ? x[i] - centre[i] : x[i]; };
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) largest = std::fmax(largest, std::fabs(value(i)));
  const float scale = largest / 127.0f;
  const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < n; ++i) out[i * stride] = static_cast<int8_t>(std::lrint(value(i) * inverse));
  return scale;
}

// The largest of `n` values, up to kValueGroup, becomes -8 of 16 steps. Returns the scale as float16.
uint16_t quantize_group(const float* x, int n, uint8_t* out) {
  float largest = 0.0f;
  for (int i = 0; i < n; ++i) largest = std::fabs(x[i]) > std::fabs(largest) ? x[i] : largest;
  const uint16_t scale = float_to_half(largest / -8.0f);
  const float step = half_to_float(scale);
  const float inverse = step != 0.0f ? 1.0f / step : 0.0f;
  uint8_t codes[kValueGroup] = {};
  for (int i = 0; i < n; ++i) {
    const long code = std::lrint(x[i] * inverse);
    codes[i] = static_cast<uint8_t>((code < -8 ? -8 : code > 7 ? 7 : code) + 8);
  }
  for (int i = 0; i < kValueGroup / 2; ++i) {
    out[i] = static_cast<uint8_t>(codes[i] | codes[i + kValueGroup / 2] << 4);
  }
  return scale;
}

void store_kv(const KvPage& page, KvType type, int position, const float* key, const float* value,
              const float* centre, int head_dim) {
  if (type == KvType::kF16) {
    auto* keys = reinterpret_cast<uint16_t*>(page.keys) + position;
    auto* values = reinterpret_cast<uint16_t*>(page.values) + position * head_dim;
    for (int i = 0; i < head_dim; ++i) keys[i * kPagePositions] = float_to_half(key[i]);
    for (int i = 0; i < head_dim; ++i) values[i] = float_to_half(value[i]);
    return;
  }
  if (position == 0) std::memcpy(page.key_centre, centre, static_cast<size_t>(head_dim) * sizeof(float));
  const int blocks = kv_scales(head_dim), size = head_dim / blocks;
  auto* keys = reinterpret_cast<int8_t*>(page.keys) + position;
  for (int b = 0; b < blocks; ++b) {
    page.key_scales[b * kPagePositions + position] = quantize_block(
        key + b * size, centre + b * size, size, keys + b * size * kPagePositions, kPagePositions);
  }
  if (type == KvType::kQ8) {
    auto* values = reinterpret_cast<int8_t*>(page.values) + position * head_dim;
    auto* scales = reinterpret_cast<float*>(page.value_scales) + position;
    for (int b = 0; b < blocks; ++b) {
      scales[b * kPagePositions] = quantize_block(value + b * size, nullptr, size, values + b * size, 1);
    }
    return;
  }
  const int groups = kv_value_groups(head_dim);
  uint8_t* values = page.values + position * groups * (kValueGroup / 2);
  auto* scales = reinterpret_cast<uint16_t*>(page.value_scales) + position;
  for (int g = 0; g < groups; ++g) {
    const int begin = g * kValueGroup, left = head_dim - begin;
    scales[g * kPagePositions] = quantize_group(value + begin, left < kValueGroup ? left : kValueGroup,
                                                values + g * (kValueGroup / 2));
  }
}

constexpr OpsTable kTable = {rms_norm, add,    swiglu, rope,  hadamard_blocks<true>, hadamard_blocks<false>,
                             store_kv, attend, merge,  finish};

}  // namespace
}  // namespace bitqwen
