#include "quant/importance.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "errors.h"

namespace bitqwen {

std::vector<float> normalised_importance(std::span<const float> importance, int64_t cols) {
  if (!importance.empty() && std::ssize(importance) != cols) {
    throw Error(ErrorKind::kArgument, std::to_string(importance.size()) + " importances for rows of " +
                                          std::to_string(cols) + " values: one a column is needed");
  }
  double total = 0;
  for (const float value : importance) {
    if (!(value >= 0.0f) || std::isinf(value)) {
      throw Error(ErrorKind::kArgument,
                  "an importance is " + std::to_string(value) + "; finite values of 0 or more are allowed");
    }
    total += value;
  }
  std::vector<float> result(importance.begin(), importance.end());
  const double mean = total / static_cast<double>(std::max<size_t>(1, result.size()));
  for (float& value : result) {
    value = mean > 0 ? static_cast<float>(std::max(value / mean, 1e-6)) : 1.0f;
  }
  return result;
}

}  // namespace bitqwen
