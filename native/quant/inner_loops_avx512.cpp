#include "quant/inner_loops_impl.h"

namespace bitqwen {

constinit const InnerLoops kAvx512Loops = kLoops;

}  // namespace bitqwen
