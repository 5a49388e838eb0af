// The x86 kernels, compiled with SIMDe in place of the CPU's instructions.
#pragma once

#include "kernels/table.h"

namespace bitqwen {

const KernelTable& emulated_avx2_kernels();
const KernelTable& emulated_avxvnni_kernels();
const KernelTable& emulated_avx512_kernels();
const KernelTable& emulated_avx512vnni_kernels();
const KernelTable& emulated_avx512vbmi_kernels();

}  // namespace bitqwen
