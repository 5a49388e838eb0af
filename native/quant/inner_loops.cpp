#include "quant/inner_loops.h"

#include "kernels/isa.h"

namespace bitqwen {

const InnerLoops& current_loops() {
  switch (current_isa()) {
#if defined(BITQWEN_QUANT_X86)
    case Isa::kAvx2:
    case Isa::kAvxVnni: return kAvx2Loops;
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Vbmi: return kAvx512Loops;
#endif
    default: return kBaselineLoops;
  }
}

}  // namespace bitqwen
