// Kernel plans as Python gives them.
#pragma once

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "errors.h"
#include "kernels/plan.h"

namespace bitqwen {

/// Format, rows and columns of a product, batch ("1", "2-4", "prefill"); instruction set, rows at a time,
/// tile columns, path of a library of generated kernels or nothing.
using PlanRow =
    std::tuple<std::string, int64_t, int64_t, std::string, std::string, int64_t, int, std::string>;

/// Throws Error(kArgument) for what is not known or cannot be used here.
KernelPlan kernel_plan(const std::vector<PlanRow>& rows);
Batch batch_named(const std::string& name);

}  // namespace bitqwen
