// Sixteen floats as one value, made of registers of whatever width the instruction set has. Compiled anew
// with each instruction set's flags, so all names are local to the including file. (GCC takes a compare or
// a selection on vectors wider than its registers apart into single values: hence the parts.)
#pragma once

#include <cstdint>
#include <cstring>

namespace bitqwen {
namespace {

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kPartBytes = 64;
#elif defined(__AVX2__)
constexpr int kPartBytes = 32;
#else
constexpr int kPartBytes = 16;
#endif
constexpr int kParts = 4 * kLanes / kPartBytes;

using FloatPart = float __attribute__((vector_size(kPartBytes)));
using IntPart = int32_t __attribute__((vector_size(kPartBytes)));

struct Floats {
  FloatPart part[kParts];
};

template <class Operation>
inline Floats each(const Floats& a, const Floats& b, Operation operation) {
  Floats result;
  for (int p = 0; p < kParts; ++p) result.part[p] = operation(a.part[p], b.part[p]);
  return result;
}

// Part by part: a copy of the whole goes through memory.
inline Floats load(const float* p) {
  Floats v;
  for (int i = 0; i < kParts; ++i) std::memcpy(&v.part[i], p + i * (kLanes / kParts), kPartBytes);
  return v;
}
inline void store(float* p, const Floats& v) {
  for (int i = 0; i < kParts; ++i) std::memcpy(p + i * (kLanes / kParts), &v.part[i], kPartBytes);
}
inline Floats splat(float x) {
  Floats v;
  for (FloatPart& part : v.part) part = FloatPart{} + x;
  return v;
}

inline Floats operator+(const Floats& a, const Floats& b) {
  return each(a, b, [](FloatPart x, FloatPart y) { return x + y; });
}
inline Floats operator-(const Floats& a, const Floats& b) {
  return each(a, b, [](FloatPart x, FloatPart y) { return x - y; });
}
inline Floats operator*(const Floats& a, const Floats& b) {
  return each(a, b, [](FloatPart x, FloatPart y) { return x * y; });
}
inline Floats operator+(const Floats& a, float b) { return a + splat(b); }
inline Floats operator-(const Floats& a, float b) { return a - splat(b); }
inline Floats operator*(const Floats& a, float b) { return a * splat(b); }
inline Floats& operator+=(Floats& a, const Floats& b) { return a = a + b; }

inline Floats maximum(const Floats& a, const Floats& b) {
  return each(a, b, [](FloatPart x, FloatPart y) { return x > y ? x : y; });
}
inline Floats minimum(const Floats& a, const Floats& b) {
  return each(a, b, [](FloatPart x, FloatPart y) { return x < y ? x : y; });
}
inline Floats clamped(const Floats& x, float low, float high) {
  return minimum(maximum(x, splat(low)), splat(high));
}
inline Floats absolute(const Floats& x) {
  Floats result;
  for (int p = 0; p < kParts; ++p) {
    result.part[p] = reinterpret_cast<FloatPart>(reinterpret_cast<IntPart>(x.part[p]) & 0x7fffffff);
  }
  return result;
}

/// To the nearest integer, ties to even; for |x| < 2^22, and what lies beyond stays beyond.
inline Floats rounded(const Floats& x) { return (x + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23

/// To the nearest integer, ties away from zero; for |x| < 2^31.
inline Floats rounded_away(const Floats& x) {
  return each(x, x, [](FloatPart v, FloatPart) {
    const FloatPart whole = __builtin_convertvector(__builtin_convertvector(v, IntPart), FloatPart);
    const FloatPart rest = v - whole, one = FloatPart{} + 1.0f, none = {};
    return whole + (rest >= 0.5f ? one : (rest <= -0.5f ? -one : none));
  });
}

inline void store_as_integers(int32_t* p, const Floats& v) {
  for (int part = 0; part < kParts; ++part) {
    const IntPart integers = __builtin_convertvector(v.part[part], IntPart);
    std::memcpy(p + part * (kLanes / kParts), &integers, sizeof integers);
  }
}

/// Halves onto halves, always in this order, so that a result does not depend on the instruction set.
template <class Operation>
inline float folded(const Floats& v, Operation operation) {
  FloatPart parts[kParts];
  for (int p = 0; p < kParts; ++p) parts[p] = v.part[p];
  for (int count = kParts / 2; count > 0; count /= 2) {
    for (int p = 0; p < count; ++p) parts[p] = operation(parts[p], parts[p + count]);
  }
  using Four = float __attribute__((vector_size(16)));
  constexpr int kQuarters = kPartBytes / 16;
  Four quarters[kQuarters];
  std::memcpy(quarters, &parts[0], kPartBytes);
  for (int count = kQuarters / 2; count > 0; count /= 2) {
    for (int q = 0; q < count; ++q) quarters[q] = operation(quarters[q], quarters[q + count]);
  }
  const Four x = quarters[0];
  return operation(operation(x[0], x[2]), operation(x[1], x[3]));
}
inline float sum(const Floats& v) {
  return folded(v, [](auto a, auto b) { return a + b; });
}
inline float maximum(const Floats& v) {
  return folded(v, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace
}  // namespace bitqwen
