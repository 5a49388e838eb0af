#include "quant/inner_loops_impl.h"

namespace bitqwen {

constinit const InnerLoops kAvx2Loops = kLoops;

}  // namespace bitqwen
