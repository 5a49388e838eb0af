// Attention over the pages of the KV cache; part of ops_impl.h, compiled anew with each instruction
// set's flags. Sums run along dimensions (scores) or positions (values), one lane an output: the width
// of a register and the shape of a tile change no bit.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>
#include <utility>

#include "ops/ops.h"
#include "vectors.h"

namespace bitqwen {
namespace {

// Calls body(integral_constant 0), ..., body(integral_constant kCount - 1). An array that is indexed by
// nothing else than such constants lives in registers; gcc leaves one that a loop runs over in memory.
template <int kCount, class Body>
__attribute__((always_inline)) inline void unrolled(Body&& body) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, kIndices>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

// Registers that run beside each other for each head, so that sums, operands and a factor fit.
template <int kHeads>
constexpr int vectors_of() {
  return kHeads * 4 + 5 <= kRegisters ? 4 : kHeads * 2 + 3 <= kRegisters ? 2 : 1;
}

/// a * b + c with one rounding where the instruction set can: not left to the compiler to decide.
inline Wide multiply_add(Wide a, Wide b, Wide c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Wide>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<Wide>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__aarch64__)
  return reinterpret_cast<Wide>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                          reinterpret_cast<float32x4_t>(b)));
#else
  return a * b + c;
#endif
}

// x . y; n is a multiple of 16.
inline float dot(const float* x, const float* y, int n) {
  alignas(64) float lanes[kLanes];
  for (int part = 0; part < kLanes; part += kWidth) {
    Wide sums = {};
    for (int i = part; i < n; i += kLanes) sums = multiply_add(load_wide(x + i), load_wide(y + i), sums);
    store_wide(lanes + part, sums);
  }
  return sum(load(lanes));
}

template <KvType kType>
__attribute__((always_inline)) inline Wide load_kv(const uint8_t* base, int64_t index) {
  if constexpr (kType == KvType::kF16) {
    const auto* p = reinterpret_cast<const uint16_t*>(base) + index;
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
    return reinterpret_cast<Wide>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
    return reinterpret_cast<Wide>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
#else
    Wide v;
    for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i]);
    return v;
#endif
  } else {
    const auto* p = reinterpret_cast<const int8_t*>(base) + index;
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
#elif defined(__AVX2__)
    return reinterpret_cast<Wide>(
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
#else
    Wide v;
    for (int i = 0; i < kWidth; ++i) v[i] = static_cast<float>(p[i]);
    return v;
#endif
  }
}

// Registers of a position's values, from dimension d on, without their scale. rows: the page's values.
template <KvType kType>
__attribute__((always_inline)) inline Wide load_values(const uint8_t* rows, int position, int d,
                                                       int head_dim) {
  if constexpr (kType != KvType::kQ4) {
    return load_kv<kType>(rows, static_cast<int64_t>(position) * head_dim + d);
  } else {
    constexpr int kHalf = kValueGroup / 2;
    const int64_t group = static_cast<int64_t>(position) * kv_value_groups(head_dim) + d / kValueGroup;
    const uint8_t* p = rows + group * kHalf + d % kHalf;
    const int shift = d % kValueGroup < kHalf ? 0 : 4;
#if defined(__AVX512F__)
    const __m128i bytes = _mm_srli_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), shift);
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
    return reinterpret_cast<Wide>(_mm512_cvtepi32_ps(codes)) - 8.0f;
#elif defined(__AVX2__)
    const __m128i bytes = _mm_srli_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), shift);
    const __m256i codes = _mm256_cvtepu8_epi32(_mm_and_si128(bytes, _mm_set1_epi8(15)));
    return reinterpret_cast<Wide>(_mm256_cvtepi32_ps(codes)) - 8.0f;
#else
    Wide v;
    for (int i = 0; i < kWidth; ++i) v[i] = static_cast<float>((p[i] >> shift & 15) - 8);
    return v;
#endif
  }
}

// Scores of kHeads queries with all positions of a page; scores: [kHeads][kPagePositions].
template <KvType kType, int kHeads>
void page_scores(const KvPage& page, const float* queries, int head_dim, float* scores) {
  constexpr int kVectors = vectors_of<kHeads>();
  const int blocks = kType == KvType::kF16 ? 1 : kv_scales(head_dim);
  const int size = head_dim / blocks;
  float centre_scores[kHeads] = {};
  if constexpr (kType != KvType::kF16) {
    for (int h = 0; h < kHeads; ++h)
      centre_scores[h] = dot(queries + h * head_dim, page.key_centre, head_dim);
  }
  for (int p = 0; p < kPagePositions; p += kVectors * kWidth) {
    for (int b = 0; b < blocks; ++b) {
      Wide sums[kHeads * kVectors] = {};
      for (int d = b * size; d < (b + 1) * size; ++d) {
        Wide keys[kVectors];
        unrolled<kVectors>(
            [&](auto v) { keys[v] = load_kv<kType>(page.keys, d * kPagePositions + p + v * kWidth); });
        unrolled<kHeads>([&](auto h) __attribute__((always_inline)) {
          const Wide q = splat_wide(queries[h * head_dim + d]);
          unrolled<kVectors>(
              [&](auto v) { sums[h * kVectors + v] = multiply_add(keys[v], q, sums[h * kVectors + v]); });
        });
      }
      unrolled<kHeads * kVectors>([&](auto i) __attribute__((always_inline)) {
        constexpr int h = i / kVectors, v = i % kVectors;
        float* out = scores + h * kPagePositions + p + v * kWidth;
        Wide s = sums[i];
        if constexpr (kType != KvType::kF16) {
          s = multiply_add(s, load_wide(page.key_scales + b * kPagePositions + p + v * kWidth),
                           b > 0 ? load_wide(out) : splat_wide(centre_scores[h]));
        }
        store_wide(out, s);
      });
    }
  }
}

// values[h][d] += sum over positions of weights[h][position] * V[position][d], for kVectors registers of d.
template <KvType kType, int kHeads, int kVectors>
void add_values(const uint8_t* rows, int positions, const float* weights, int head_dim, int d,
                float* values) {
  Wide sums[kHeads * kVectors];
  unrolled<kHeads * kVectors>(
      [&](auto i) { sums[i] = load_wide(values + i / kVectors * head_dim + d + i % kVectors * kWidth); });
  for (int p = 0; p < positions; ++p) {
    Wide row[kVectors];
    unrolled<kVectors>([&](auto v) { row[v] = load_values<kType>(rows, p, d + v * kWidth, head_dim); });
    unrolled<kHeads>([&](auto h) __attribute__((always_inline)) {
      const Wide w = splat_wide(weights[h * kPagePositions + p]);
      unrolled<kVectors>(
          [&](auto v) { sums[h * kVectors + v] = multiply_add(row[v], w, sums[h * kVectors + v]); });
    });
  }
  unrolled<kHeads * kVectors>(
      [&](auto i) { store_wide(values + i / kVectors * head_dim + d + i % kVectors * kWidth, sums[i]); });
}

// The same for all d. A quantised value's scale goes into its weight.
template <KvType kType, int kHeads>
void page_values(const KvPage& page, int positions, const float* weights, int head_dim, float* values) {
  constexpr int kVectors = vectors_of<kHeads>();
  const int blocks = kType == KvType::kF16  ? 1
                     : kType == KvType::kQ8 ? kv_scales(head_dim)
                                            : kv_value_groups(head_dim);
  const int size = kType == KvType::kQ4 ? kValueGroup : head_dim / blocks;
  alignas(64) float scaled[kHeads * kPagePositions];
  for (int b = 0; b < blocks; ++b) {
    const float* factors = weights;
    if constexpr (kType != KvType::kF16) {
      for (int p = 0; p < kPagePositions; p += kWidth) {
        const int place = b * kPagePositions + p;
        Wide scale;
        if constexpr (kType == KvType::kQ8) {
          scale = load_wide(reinterpret_cast<const float*>(page.value_scales) + place);
        } else {
          scale = load_kv<KvType::kF16>(page.value_scales, place);
        }
        for (int h = 0; h < kHeads; ++h) {
          const int i = h * kPagePositions + p;
          store_wide(scaled + i, load_wide(weights + i) * scale);
        }
      }
      factors = scaled;
    }
    int d = b * size;
    const int end = head_dim - d < size ? head_dim : d + size;
    for (; d + kVectors * kWidth <= end; d += kVectors * kWidth) {
      add_values<kType, kHeads, kVectors>(page.values, positions, factors, head_dim, d, values);
    }
    for (; d < end; d += kWidth) {  // head_dim is a multiple of 16
      add_values<kType, kHeads, 1>(page.values, positions, factors, head_dim, d, values);
    }
  }
}

// Softmax weights of one head over a page's visible scores, and the running maximum and sum.
void page_softmax(float* scores, int positions, int head_dim, float& maximum_so_far, float& weight,
                  float* values) {
  const float hidden = -std::numeric_limits<float>::infinity();
  for (int p = positions; p < kPagePositions; ++p) scores[p] = hidden;
  Wide highest = load_wide(scores);
  for (int p = kWidth; p < kPagePositions; p += kWidth) highest = maximum(highest, load_wide(scores + p));
  const float page_maximum = maximum(highest);
  if (page_maximum > maximum_so_far) {
    const float factor = exponential(splat_wide(maximum_so_far - page_maximum))[0];
    maximum_so_far = page_maximum;
    weight *= factor;
    for (int d = 0; d < head_dim; d += kWidth) store_wide(values + d, load_wide(values + d) * factor);
  }
  alignas(64) float totals[kLanes];
  for (int part = 0; part < kLanes; part += kWidth) {
    Wide total = {};
    for (int p = part; p < kPagePositions; p += kLanes) {
      const Wide e = exponential(load_wide(scores + p) - maximum_so_far);
      store_wide(scores + p, e);
      total += e;
    }
    store_wide(totals + part, total);
  }
  weight += sum(load(totals));
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
  switch (type) {
    case KvType::kF16:
      return attend_typed<KvType::kF16>(pages, positions, queries, heads, head_dim, scratch, out);
    case KvType::kQ8:
      return attend_typed<KvType::kQ8>(pages, positions, queries, heads, head_dim, scratch, out);
    case KvType::kQ4:
      return attend_typed<KvType::kQ4>(pages, positions, queries, heads, head_dim, scratch, out);
  }
}

void merge(const PartialAttention& into, const PartialAttention& from, int heads, int head_dim) {
  for (int h = 0; h < heads; ++h) {
    const float highest = into.maximum[h] > from.maximum[h] ? into.maximum[h] : from.maximum[h];
    const float a = exponential(splat_wide(into.maximum[h] - highest))[0];
    const float b = exponential(splat_wide(from.maximum[h] - highest))[0];
    into.maximum[h] = highest;
    into.weight[h] = into.weight[h] * a + from.weight[h] * b;
    for (int d = 0; d < head_dim; d += kWidth) {
      float* values = into.values + h * head_dim + d;
      store_wide(values, multiply_add(load_wide(values), splat_wide(a),
                                      load_wide(from.values + h * head_dim + d) * b));
    }
  }
}

void finish(const PartialAttention& partial, int heads, int head_dim, float* out) {
  for (int h = 0; h < heads; ++h) {
    const float inverse = 1.0f / partial.weight[h];
    for (int d = 0; d < head_dim; d += kWidth) {
      store_wide(out + h * head_dim + d, load_wide(partial.values + h * head_dim + d) * inverse);
    }
  }
}

}  // namespace
}  // namespace bitqwen
