// Random tensors and activations for the tests of weights/ and kernels/, from a fixed seed.
#pragma once

#include "measure/random_tensors.h"

namespace bitqwen::testing {

using namespace measure;

}  // namespace bitqwen::testing
