#include "quant/codebook_sweep.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf/codebook.h"
#include "quant/inner_loops.h"

namespace bitqwen {
namespace {

constexpr int64_t kGrain = 4;  // rows

AllPoints all_points(gguf::TensorType type, std::span<const int8_t> codebook) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  if (info.codebook.entries == 0) {
    throw Error(ErrorKind::kUnsupported, std::string(info.name) + " has no codebook");
  }
  gguf::check_codebook(info, codebook, "matrix");
  const int entries = static_cast<int>(info.codebook.entries);
  AllPoints points{.count = entries * (info.codebook.mirrored ? 2 : 1)};
  for (int c = 0; c < points.count; ++c) {
    for (int dim = 0; dim < 2; ++dim) {
      const auto value = static_cast<float>(codebook[c % entries * 2 + dim]);
      points.at[dim][c] = c < entries ? value : -value;
    }
  }
  return points;
}

}  // namespace

void feedback_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                    const float* weights, const float* feedback, const float* costs, float* target,
                    ThreadPool& pool) {
  const AllPoints points = all_points(type, codebook);
  const PairRows& rows = current_loops().pair_rows;
  pool.parallel_for(sweep.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) rows.feedback(points, sweep, r, weights, feedback, costs, target);
  });
}

int64_t descend_pairs(gguf::TensorType type, std::span<const int8_t> codebook, const PairSweep& sweep,
                      const float* moments, float* error, float* gradient, bool fit_scales,
                      ThreadPool& pool) {
  const AllPoints points = all_points(type, codebook);
  const int64_t count = sweep.rows * sweep.pairs;
  if (std::any_of(sweep.codes, sweep.codes + count, [&](uint8_t code) { return code >= points.count; })) {
    throw Error(ErrorKind::kArgument,
                "a code is out of range: there are codes from 0 to " + std::to_string(points.count - 1));
  }
  const PairRows& rows = current_loops().pair_rows;
  std::atomic<int64_t> changes = 0;
  pool.parallel_for(sweep.rows, kGrain, [&](int64_t begin, int64_t end, int) {
    int64_t mine = 0;
    std::vector<float> product(2 * static_cast<size_t>(sweep.pairs));
    for (int64_t r = begin; r < end; ++r) {
      mine += rows.descend(points, sweep, r, moments, error, gradient, fit_scales, product.data());
    }
    changes += mine;
  });
  return changes;
}

}  // namespace bitqwen
