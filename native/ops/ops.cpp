#include "ops/ops.h"

namespace bitqwen {

const OpsTable& current_ops() {
  switch (current_isa()) {
#if defined(BITQWEN_OPS_X86)
    case Isa::kAvx2:
    case Isa::kAvxVnni: return avx2_ops();
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Vbmi: return avx512_ops();
#endif
    default: return baseline_ops();
  }
}

}  // namespace bitqwen
