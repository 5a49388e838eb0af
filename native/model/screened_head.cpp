#include "model/screened_head.h"

#include <string>

#include "errors.h"
#include "kernels/coarse_rows.h"

namespace bitqwen {
namespace {

std::vector<float> random_signs(int64_t count) {
  std::vector<float> signs(static_cast<size_t>(count));
  uint64_t state = 0x9e3779b97f4a7c15;  // xorshift64*: the same signs in every process
  for (float& sign : signs) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    sign = (state * 0x2545f4914f6cdd1d) >> 63 ? 1.0f : -1.0f;
  }
  return signs;
}

PackedMatrix coarse(const PackedMatrix& head, std::span<const float> signs, std::vector<float>& spreads,
                    ThreadPool& pool) {
  if (coarse_mix(head.cols()) == 0) {
    throw Error(ErrorKind::kUnsupported,
                "a screened head needs rows of a multiple of " + std::to_string(kCoarseBlock) +
                    " values; this model's have " + std::to_string(head.cols()),
                "Open the model without it.");
  }
  spreads.resize(static_cast<size_t>(head.rows()));
  return coarse_rows(head, signs, spreads, pool);
}

}  // namespace

ScreenedHead::ScreenedHead(const PackedMatrix& head, ThreadPool& pool)
    : signs_(random_signs(head.cols())), rows_(coarse(head, signs_, spreads_, pool)) {}

int64_t ScreenedHead::bytes(int64_t rows, int64_t cols) {
  const FormatInfo& format = format_info(Format::kV2);
  return rows * (cols / format.unit * format.unit_bytes() / kRowBlock + static_cast<int64_t>(sizeof(float)));
}

void ScreenedHead::rotate(float* x) const { rotate_state(signs_, x); }

}  // namespace bitqwen
