// The operations, written once; each ops_<isa>.cpp compiles them with its own flags. Everything is in
// an unnamed namespace: code with an instruction set's flags must not be shared by the linker.
#pragma once

#include <cmath>
#include <limits>

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

Floats silu(Floats x) { return x / (1.0f + exponential(-x)); }

void swiglu(float* gate, const float* up, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(gate + i, silu(load(gate + i)) * load(up + i));
  if (i < n) {
    float rest[2][kLanes] = {};
    std::memcpy(rest[0], gate + i, (n - i) * sizeof(float));
    std::memcpy(rest[1], up + i, (n - i) * sizeof(float));
    store(rest[0], silu(load(rest[0])) * load(rest[1]));
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
  auto* values = reinterpret_cast<int8_t*>(page.values) + position * head_dim;
  for (int b = 0; b < blocks; ++b) {
    page.key_scales[b * kPagePositions + position] = quantize_block(
        key + b * size, centre + b * size, size, keys + b * size * kPagePositions, kPagePositions);
    page.value_scales[position * blocks + b] =
        quantize_block(value + b * size, nullptr, size, values + b * size, 1);
  }
}

template <KvType kType>
Floats load_kv(const uint8_t* base, int64_t index) {
  if constexpr (kType == KvType::kF16) return load_half(reinterpret_cast<const uint16_t*>(base) + index);
  return load_int8(reinterpret_cast<const int8_t*>(base) + index);
}

// Scores of kHeads queries with all positions of a page; scores: [kHeads][kPagePositions].
// Two vectors of positions at a time keep 2 * kHeads sums in registers.
template <KvType kType, int kHeads>
void page_scores(const KvPage& page, const float* queries, int head_dim, float* scores) {
  constexpr int kVectors = kHeads > 4 ? 2 : 4;
  const int blocks = kType == KvType::kInt8 ? kv_scales(head_dim) : 1;
  const int size = head_dim / blocks;
  float centre_scores[kHeads] = {};
  if constexpr (kType == KvType::kInt8) {
    for (int h = 0; h < kHeads; ++h) {
      Floats products = {};
      for (int d = 0; d < head_dim; d += kLanes) {  // head_dim is a multiple of 16
        products += load(queries + h * head_dim + d) * load(page.key_centre + d);
      }
      centre_scores[h] = sum(products);
    }
  }
  for (int p = 0; p < kPagePositions; p += kVectors * kLanes) {
    for (int b = 0; b < blocks; ++b) {
      Floats sums[kHeads][kVectors] = {};
      for (int d = b * size; d < (b + 1) * size; ++d) {
        Floats keys[kVectors];
        for (int v = 0; v < kVectors; ++v)
          keys[v] = load_kv<kType>(page.keys, d * kPagePositions + p + v * kLanes);
#pragma GCC unroll 8
        for (int h = 0; h < kHeads; ++h) {
          const float q = queries[h * head_dim + d];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) sums[h][v] += keys[v] * q;
        }
      }
      for (int h = 0; h < kHeads; ++h) {
        for (int v = 0; v < kVectors; ++v) {
          float* out = scores + h * kPagePositions + p + v * kLanes;
          Floats s = sums[h][v];
          if constexpr (kType == KvType::kInt8) {
            s *= load(page.key_scales + b * kPagePositions + p + v * kLanes);
            s += b > 0 ? load(out) : splat(centre_scores[h]);
          }
          store(out, s);
        }
      }
    }
  }
}

// values[h][d] += sum over positions of weights[h][position] * V[position][d].
template <KvType kType, int kHeads>
void page_values(const KvPage& page, int positions, const float* weights, int head_dim, float* values) {
  constexpr int kVectors = kHeads > 4 ? 2 : 4;
  const int blocks = kType == KvType::kInt8 ? kv_scales(head_dim) : 1;
  const int size = head_dim / blocks;
  int d = 0;
  for (; d + kVectors * kLanes <= head_dim; d += kVectors * kLanes) {
    Floats sums[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) sums[h][v] = load(values + h * head_dim + d + v * kLanes);
    }
    for (int p = 0; p < positions; ++p) {
      Floats row[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        row[v] = load_kv<kType>(page.values, static_cast<int64_t>(p) * head_dim + d + v * kLanes);
        if constexpr (kType == KvType::kInt8)
          row[v] *= page.value_scales[p * blocks + (d + v * kLanes) / size];
      }
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        const float w = weights[h * kPagePositions + p];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[h][v] += row[v] * w;
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      for (int v = 0; v < kVectors; ++v) store(values + h * head_dim + d + v * kLanes, sums[h][v]);
    }
  }
  for (; d < head_dim; d += kLanes) {  // head_dim is a multiple of 16
    for (int h = 0; h < kHeads; ++h) {
      Floats total = load(values + h * head_dim + d);
      for (int p = 0; p < positions; ++p) {
        Floats row = load_kv<kType>(page.values, static_cast<int64_t>(p) * head_dim + d);
        if constexpr (kType == KvType::kInt8) row *= page.value_scales[p * blocks + d / size];
        total += row * weights[h * kPagePositions + p];
      }
      store(values + h * head_dim + d, total);
    }
  }
}

// Softmax weights of one head over a page's visible scores, and the running maximum and sum.
void page_softmax(float* scores, int positions, int head_dim, float& maximum_so_far, float& weight,
                  float* values) {
  const float hidden = -std::numeric_limits<float>::infinity();
  for (int p = positions; p < kPagePositions; ++p) scores[p] = hidden;
  Floats highest = load(scores);
  for (int p = kLanes; p < kPagePositions; p += kLanes) highest = maximum(highest, load(scores + p));
  const float page_maximum = maximum(highest);
  if (page_maximum > maximum_so_far) {
    const float factor = exponential(splat(maximum_so_far - page_maximum))[0];
    maximum_so_far = page_maximum;
    weight *= factor;
    for (int d = 0; d < head_dim; d += kLanes) store(values + d, load(values + d) * factor);
  }
  Floats total = {};
  for (int p = 0; p < kPagePositions; p += kLanes) {
    const Floats e = exponential(load(scores + p) - maximum_so_far);
    store(scores + p, e);
    total += e;
  }
  weight += sum(total);
}

template <KvType kType, int kHeads>
void attend_heads(const KvPage* pages, int64_t positions, const float* queries, int head_dim, float* scratch,
                  const PartialAttention& out) {
  for (int h = 0; h < kHeads; ++h) {
    out.maximum[h] = -std::numeric_limits<float>::infinity();
    out.weight[h] = 0.0f;
  }
  std::memset(out.values, 0, sizeof(float) * kHeads * static_cast<size_t>(head_dim));
  for (int64_t begin = 0; begin < positions; begin += kPagePositions) {
    const KvPage& page = pages[begin / kPagePositions];
    const int visible =
        static_cast<int>(positions - begin < kPagePositions ? positions - begin : kPagePositions);
    page_scores<kType, kHeads>(page, queries, head_dim, scratch);
    for (int h = 0; h < kHeads; ++h) {
      page_softmax(scratch + h * kPagePositions, visible, head_dim, out.maximum[h], out.weight[h],
                   out.values + h * head_dim);
    }
    page_values<kType, kHeads>(page, visible, scratch, head_dim, out.values);
  }
}

template <KvType kType>
void attend_typed(const KvPage* pages, int64_t positions, const float* queries, int heads, int head_dim,
                  float* scratch, const PartialAttention& out) {
  for (int h = 0; h < heads;) {
    const int left = heads - h;
    const float* q = queries + h * head_dim;
    const PartialAttention part{out.maximum + h, out.weight + h, out.values + h * head_dim};
    const auto run = [&]<int kHeads>() {
      attend_heads<kType, kHeads>(pages, positions, q, head_dim, scratch, part);
      h += kHeads;
    };
    if (left >= 8) {
      run.template operator()<8>();
    } else if (left == 7) {
      run.template operator()<7>();
    } else if (left == 6) {
      run.template operator()<6>();
    } else if (left == 5) {
      run.template operator()<5>();
    } else if (left >= 4) {
      run.template operator()<4>();
    } else if (left >= 2) {
      run.template operator()<2>();
    } else {
      run.template operator()<1>();
    }
  }
}

void attend(const KvPage* pages, KvType type, int64_t positions, const float* queries, int heads,
            int head_dim, float* scratch, const PartialAttention& out) {
  if (type == KvType::kF16) {
    attend_typed<KvType::kF16>(pages, positions, queries, heads, head_dim, scratch, out);
  } else {
    attend_typed<KvType::kInt8>(pages, positions, queries, heads, head_dim, scratch, out);
  }
}

void merge(const PartialAttention& into, const PartialAttention& from, int heads, int head_dim) {
  for (int h = 0; h < heads; ++h) {
    const float highest = into.maximum[h] > from.maximum[h] ? into.maximum[h] : from.maximum[h];
    const float a = exponential(splat(into.maximum[h] - highest))[0];
    const float b = exponential(splat(from.maximum[h] - highest))[0];
    into.maximum[h] = highest;
    into.weight[h] = into.weight[h] * a + from.weight[h] * b;
    for (int d = 0; d < head_dim; d += kLanes) {
      float* values = into.values + h * head_dim + d;
      store(values, load(values) * a + load(from.values + h * head_dim + d) * b);
    }
  }
}

void finish(const PartialAttention& partial, int heads, int head_dim, float* out) {
  for (int h = 0; h < heads; ++h) {
    const float inverse = 1.0f / partial.weight[h];
    for (int d = 0; d < head_dim; d += kLanes) {
      store(out + h * head_dim + d, load(partial.values + h * head_dim + d) * inverse);
    }
  }
}

constexpr OpsTable kTable = {rms_norm, add, swiglu, rope, store_kv, attend, merge, finish};

}  // namespace
}  // namespace bitqwen
