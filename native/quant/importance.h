// How much the error of each column of a matrix weighs.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace bitqwen {

/// Scaled to a mean of 1, so that no scale of the caller's can overflow; a column of no importance still
/// counts a little, so that its blocks do not vanish. Empty stays empty. Throws Error(kArgument) unless there
/// is one finite value of 0 or more for each of `cols` columns.
std::vector<float> normalised_importance(std::span<const float> importance, int64_t cols);

}  // namespace bitqwen
