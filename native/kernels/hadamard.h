// The Hadamard transform, of floats or of lanes of floats: the same additions in the same order.
#pragma once

namespace bitqwen {
namespace {  // each instruction set compiles its own

/// In place and not normalised; n: a power of two, two steps at a time while four values are in registers.
template <class Value>
inline void hadamard(Value* x, int n) {
  int half = 1;
  for (; 4 * half <= n; half *= 4) {
    for (int begin = 0; begin < n; begin += 4 * half) {
      for (int i = begin; i < begin + half; ++i) {
        const Value a = x[i] + x[i + half], b = x[i] - x[i + half];
        const Value c = x[i + 2 * half] + x[i + 3 * half], d = x[i + 2 * half] - x[i + 3 * half];
        x[i] = a + c;
        x[i + half] = b + d;
        x[i + 2 * half] = a - c;
        x[i + 3 * half] = b - d;
      }
    }
  }
  if (half < n) {
    for (int i = 0; i < half; ++i) {
      const Value a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
}

}  // namespace
}  // namespace bitqwen
