#include "quant/inner_loops_impl.h"

namespace bitqwen {

constinit const InnerLoops kBaselineLoops = kLoops;

}  // namespace bitqwen
