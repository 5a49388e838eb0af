// Whether the kernels of each instruction set compute the same here as the scalar ones, which specify them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/isa.h"

namespace bitqwen::measure {

struct SelfTestResult {
  Isa isa;
  std::string type;  // of the weights
  int products = 0;  // compared
  int wrong = 0;     // with a bit other than the scalar kernels'
};

/// Multiplies random weights of every tensor type with random activations of several shapes and batches, on
/// every instruction set that this CPU runs; one result for each set and type. Switches the live set while
/// it runs: nothing else may compute in this process.
std::vector<SelfTestResult> self_test(uint64_t seed);

}  // namespace bitqwen::measure
