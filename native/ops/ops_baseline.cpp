#include "ops/ops_impl.h"

namespace bitqwen {

const OpsTable& baseline_ops() { return kTable; }

}  // namespace bitqwen
