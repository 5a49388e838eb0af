// Registers side by side: what an instruction set's `Lanes` do for the rows of one register, `Rows`
// do for kCount registers. A row block is 16 rows whatever the width of a register.
//
// Lanes offer (kRows rows a register):
//   Bytes    4 codes of each row          load, store, field, field_in_place, with_field
//   Floats   one float of each row        zero, load_floats, store_floats, broadcast, from_half,
//   from_bfloat16,
//                                         from_u8, from_s8, add_constant, negate, mul, fma
//   PointTables  a codebook               load_points, points
//   Trits    bytes of five trits          load_trits, open_trits, trit: the codes of digit after digit
//   Quad     4 activations, for all rows  quad
//   Dot<b>   sums of products of codes of b bits, exact:
//              start<offset>(sum)     before the first step; sum points at minus the sum of the activations
//              add<step>(codes, x)    4 columns more; steps count from 0 in every 32 columns, or in the cell
//              add_shifted<s>(other)  other's sums, divided by 2^s, which they are multiples of
//              value<offset>(sum)     sum of (code - offset) * x, as a float: start or this one sees to the
//              offset
#pragma once

#include <cstdint>
#include <utility>

#include "kernels/simd_inline.h"
#include "weights/layout.h"

namespace bitqwen {
namespace {

template <int... kIndex, class Body>
BITQWEN_INLINE void each_index(std::integer_sequence<int, kIndex...>, Body&& body) {
  (body(std::integral_constant<int, kIndex>{}), ...);
}
template <int kCount, class Body>
BITQWEN_INLINE void unrolled(Body&& body) {
  each_index(std::make_integer_sequence<int, kCount>{}, body);
}

template <class Lanes, int kCount>
struct Rows {
#define BITQWEN_ROWS static BITQWEN_INLINE
  static constexpr int kRows = kCount * Lanes::kRows;
  struct Bytes {
    typename Lanes::Bytes v[kCount];
  };
  struct Floats {
    typename Lanes::Floats v[kCount];
  };
  using Quad = typename Lanes::Quad;

  template <int kBits>
  struct Dot {
    typename Lanes::template Dot<kBits> v[kCount];

    template <int kOffset>
    BITQWEN_INLINE void start(const int32_t* minus_sum) {
      for (auto& dot : v) dot.template start<kOffset>(minus_sum);
    }
    template <int kStep>
    BITQWEN_INLINE void add(const Bytes& codes, Quad x) {
      for (int i = 0; i < kCount; ++i) v[i].template add<kStep>(codes.v[i], x);
    }
    template <int kShift>
    BITQWEN_INLINE void add_shifted(const Dot& other) {
      for (int i = 0; i < kCount; ++i) v[i].template add_shifted<kShift>(other.v[i]);
    }
    template <int kOffset>
    BITQWEN_INLINE Floats value(const int32_t* minus_sum) const {
      Floats out;
      for (int i = 0; i < kCount; ++i) out.v[i] = v[i].template value<kOffset>(minus_sum);
      return out;
    }
  };

  BITQWEN_ROWS Bytes load(const uint8_t* p) {
    Bytes out;
    for (int i = 0; i < kCount; ++i) out.v[i] = Lanes::load(p + 4 * Lanes::kRows * i);
    return out;
  }
  BITQWEN_ROWS void store(uint8_t* p, const Bytes& a) {
    for (int i = 0; i < kCount; ++i) Lanes::store(p + 4 * Lanes::kRows * i, a.v[i]);
  }
  /// Bits [kFrom, kFrom + kBits) of every byte, moved to bit 0.
  template <int kBits, int kFrom>
  BITQWEN_ROWS Bytes field(Bytes a) {
    for (auto& v : a.v) v = Lanes::template field<kBits, kFrom>(v);
    return a;
  }
  /// The same bits, left where they are.
  template <int kBits, int kFrom>
  BITQWEN_ROWS Bytes field_in_place(Bytes a) {
    for (auto& v : a.v) v = Lanes::template field_in_place<kBits, kFrom>(v);
    return a;
  }
  /// low, and the same bits of `a` moved to bit kTo.
  template <int kBits, int kFrom, int kTo>
  BITQWEN_ROWS Bytes with_field(Bytes low, const Bytes& a) {
    for (int i = 0; i < kCount; ++i)
      low.v[i] = Lanes::template with_field<kBits, kFrom, kTo>(low.v[i], a.v[i]);
    return low;
  }
  using PointTables = typename Lanes::PointTables;
  template <int kHighBits>
  BITQWEN_ROWS PointTables load_points(const CodePoints& points) {
    return Lanes::template load_points<kHighBits>(points);
  }
  template <int kHighBits, int kLowAt, int kHighAt>
  BITQWEN_ROWS void points(const PointTables& tables, const Bytes& low, const Bytes& high, Bytes (&out)[2]) {
    for (int i = 0; i < kCount; ++i) {
      typename Lanes::Bytes both[2];
      Lanes::template points<kHighBits, kLowAt, kHighAt>(tables, low.v[i], high.v[i], both);
      out[0].v[i] = both[0];
      out[1].v[i] = both[1];
    }
  }
  using TritTables = typename Lanes::TritTables;
  struct Trits {
    typename Lanes::Trits v[kCount];
  };
  BITQWEN_ROWS TritTables load_trits() { return Lanes::load_trits(); }
  BITQWEN_ROWS Trits open_trits(const TritTables& tables, const uint8_t* p) {
    Trits out;
    for (int i = 0; i < kCount; ++i)
      out.v[i] = Lanes::open_trits(tables, Lanes::load(p + 4 * Lanes::kRows * i));
    return out;
  }
  /// The codes of digit kDigit, 0 to 4 in this order; kInPlace: where they lie in the byte.
  template <int kDigit, bool kInPlace>
  BITQWEN_ROWS Bytes trit(Trits& trits) {
    Bytes out;
    for (int i = 0; i < kCount; ++i) out.v[i] = Lanes::template trit<kDigit, kInPlace>(trits.v[i]);
    return out;
  }
  BITQWEN_ROWS Quad quad(const int8_t* p) { return Lanes::quad(p); }

  template <class Make>
  BITQWEN_ROWS Floats each(Make&& make) {
    Floats out;
    for (int i = 0; i < kCount; ++i) out.v[i] = make(i);
    return out;
  }
  BITQWEN_ROWS Floats zero() {
    return each([](int) BITQWEN_INLINE_LAMBDA { return Lanes::zero(); });
  }
  BITQWEN_ROWS Floats broadcast(const float* p) {
    return each([&](int) BITQWEN_INLINE_LAMBDA { return Lanes::broadcast(p); });
  }
  BITQWEN_ROWS Floats load_floats(const float* p) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::load_floats(p + Lanes::kRows * i); });
  }
  BITQWEN_ROWS void store_floats(float* p, const Floats& a) {
    for (int i = 0; i < kCount; ++i) Lanes::store_floats(p + Lanes::kRows * i, a.v[i]);
  }
  BITQWEN_ROWS Floats from_half(const uint8_t* p) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::from_half(p + 2 * Lanes::kRows * i); });
  }
  BITQWEN_ROWS Floats from_bfloat16(const uint8_t* p) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::from_bfloat16(p + 2 * Lanes::kRows * i); });
  }
  BITQWEN_ROWS Floats from_u8(const uint8_t* p) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::from_u8(p + Lanes::kRows * i); });
  }
  BITQWEN_ROWS Floats from_s8(const uint8_t* p) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::from_s8(p + Lanes::kRows * i); });
  }
  BITQWEN_ROWS Floats add_constant(const Floats& a, float constant) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::add_constant(a.v[i], constant); });
  }
  BITQWEN_ROWS Floats negate(const Floats& a) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::negate(a.v[i]); });
  }
  BITQWEN_ROWS Floats mul(const Floats& a, const Floats& b) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::mul(a.v[i], b.v[i]); });
  }
  BITQWEN_ROWS Floats fma(const Floats& a, const Floats& b, const Floats& c) {
    return each([&](int i) BITQWEN_INLINE_LAMBDA { return Lanes::fma(a.v[i], b.v[i], c.v[i]); });
  }
#undef BITQWEN_ROWS
};

/// Sums of products of R's rows with each of kColumns columns. The steps of a column may be shared out to
/// kPlaces sums: independent chains of additions, or codes that are multiplied where they lie in the byte.
template <class R, int kBits, int kColumns, int kPlaces = 1>
struct ColumnDots {
  typename R::template Dot<kBits> v[kColumns][kPlaces];

  /// minus_sums: one a column
  template <int kOffset>
  BITQWEN_INLINE void start(const int32_t* minus_sums) {
    unrolled<kColumns>([&](auto c) BITQWEN_INLINE_LAMBDA {
      v[c][0].template start<kOffset>(minus_sums + c);
      for (int p = 1; p < kPlaces; ++p) v[c][p].template start<0>(minus_sums);
    });
  }
  /// x: 4 activations of each column
  template <int kPlace, int kStep>
  BITQWEN_INLINE void add(const typename R::Bytes& codes, const int8_t* x) {
    unrolled<kColumns>(
        [&](auto c) BITQWEN_INLINE_LAMBDA { v[c][kPlace].template add<kStep>(codes, R::quad(x + 4 * c)); });
  }
  /// Of one column, once; the sums of place p are 2^(kShift * p) too large.
  template <int kColumn, int kOffset, int kShift>
  BITQWEN_INLINE typename R::Floats value(const int32_t* minus_sums) {
    unrolled<kPlaces - 1>([&](auto place) BITQWEN_INLINE_LAMBDA {
      constexpr int kPlace = decltype(place)::value + 1;
      v[kColumn][0].template add_shifted<kPlace * kShift>(v[kColumn][kPlace]);
    });
    return v[kColumn][0].template value<kOffset>(minus_sums + kColumn);
  }
};

}  // namespace
}  // namespace bitqwen
