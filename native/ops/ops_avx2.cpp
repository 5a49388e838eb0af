#include "ops/ops_impl.h"

namespace bitqwen {

const OpsTable& avx2_ops() { return kTable; }

}  // namespace bitqwen
