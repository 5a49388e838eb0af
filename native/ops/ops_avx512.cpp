#include "ops/ops_impl.h"

namespace bitqwen {

const OpsTable& avx512_ops() { return kTable; }

}  // namespace bitqwen
