// Exact sums of code times activation for x86: with the dot-product instruction, and without.
#pragma once

#include <cstdint>

#include "kernels/simd_inline.h"

namespace bitqwen {
namespace {

/// With vpdpbusd: four products a lane are added to an int32 at once. The offset is the starting value.
template <class Lanes, int kBits>
struct ProductDot {
  typename Lanes::Ints sums;

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t* minus_sum) {
    if constexpr (kOffset == 0) {
      sums = Lanes::zero_ints();
    } else {
      sums = Lanes::template shift_left<__builtin_ctz(kOffset)>(Lanes::broadcast_int(minus_sum));
    }
  }
  template <int kStep>
  BITQWEN_INLINE void add(typename Lanes::Bytes codes, typename Lanes::Quad x) {
    sums = Lanes::dot_products(sums, codes, x);
  }
  template <int kShift>
  BITQWEN_INLINE void add_shifted(const ProductDot& other) {
    sums = Lanes::add32(sums, Lanes::template shift_right<kShift>(other.sums));
  }
  template <int kOffset>
  BITQWEN_INLINE typename Lanes::Floats value(const int32_t*) const {
    return Lanes::to_floats(sums);
  }
};

// Adds the offset where the sums are taken out: until then it would only hold a register.
template <class Lanes, int kOffset>
BITQWEN_INLINE typename Lanes::Floats offset_value(typename Lanes::Ints sums, const int32_t* minus_sum) {
  if constexpr (kOffset != 0) {
    sums = Lanes::add32(sums,
                        Lanes::template shift_left<__builtin_ctz(kOffset)>(Lanes::broadcast_int(minus_sum)));
  }
  return Lanes::to_floats(sums);
}

constexpr int kSteps32 = 8;  // of 4 columns in 32

/// With vpmaddubsw: pairs of products are added in int16 as long as kLimit steps fit.
template <class Lanes, int kBits>
struct PairDot {
  static constexpr int kLimit = 32767 / (2 * 127 * ((1 << kBits) - 1));
  static constexpr bool kWidens = kLimit < kSteps32;
  static_assert(kBits > 2 || kLimit >= 4 * kSteps32, "two-bit cells have up to 128 columns, all others 32");
  typename Lanes::Ints pairs;
  typename Lanes::Ints sums;  // of what has been widened

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t*) {
    pairs = Lanes::zero_ints();
    if constexpr (kWidens) sums = Lanes::zero_ints();
  }
  template <int kStep>
  BITQWEN_INLINE void add(typename Lanes::Bytes codes, typename Lanes::Quad x) {
    const typename Lanes::Ints products = Lanes::pair_products(codes, x);
    if constexpr (kStep % kLimit == 0 && kWidens) {
      if constexpr (kStep > 0) sums = Lanes::add32(sums, Lanes::widen_pairs(pairs));
      pairs = products;
    } else {
      pairs = Lanes::add16(pairs, products);
      BITQWEN_KEEP_CHAIN(pairs);
    }
  }
  template <int kOffset>
  BITQWEN_INLINE typename Lanes::Floats value(const int32_t* minus_sum) const {
    typename Lanes::Ints all = Lanes::widen_pairs(pairs);
    if constexpr (kWidens) all = Lanes::add32(all, sums);
    return offset_value<Lanes, kOffset>(all, minus_sum);
  }
};

/// Eight bits overflow int16 as they stand: their nibbles do not.
template <class Lanes>
struct PairDot<Lanes, 8> {
  PairDot<Lanes, 4> low, high;

  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t* minus_sum) {
    low.template start<0>(minus_sum);
    high.template start<0>(minus_sum);
  }
  template <int kStep>
  BITQWEN_INLINE void add(typename Lanes::Bytes codes, typename Lanes::Quad x) {
    low.template add<kStep>(Lanes::template field<4, 0>(codes), x);
    high.template add<kStep>(Lanes::template field<4, 4>(codes), x);
  }
  template <int kOffset>
  BITQWEN_INLINE typename Lanes::Floats value(const int32_t* minus_sum) const {
    const typename Lanes::Ints high_sums = Lanes::template shift_left<4>(Lanes::widen_pairs(high.pairs));
    return offset_value<Lanes, kOffset>(Lanes::add32(Lanes::widen_pairs(low.pairs), high_sums), minus_sum);
  }
};

}  // namespace
}  // namespace bitqwen
