#include "model/screened_head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>

#include "errors.h"
#include "gguf/dequantize.h"
#include "half.h"

namespace bitqwen {
namespace {

constexpr int kBlock = ScreenedHead::kBlock;
constexpr int kBlockBytes = 34;  // of V2: an f16 scale, 64 pairs of 4 bits

// The four levels that suit a normal distribution best lie at 0.453 and 1.51 deviations, with the bound
// between them at 0.982; the codebook holds all pairs of them.
constexpr std::array<int8_t, 4> kLevels = {-30, -9, 9, 30};
constexpr float kBound = 0.9816f;

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

std::array<int8_t, 32> codebook() {
  std::array<int8_t, 32> points;
  for (size_t i = 0; i < 16; ++i) {
    points[2 * i] = kLevels[i % 4];
    points[2 * i + 1] = kLevels[i / 4];
  }
  return points;
}

void hadamard(float* x) {
  for (int half = 1; half < kBlock; half *= 2) {
    for (int begin = 0; begin < kBlock; begin += 2 * half) {
      for (int i = begin; i < begin + half; ++i) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const float scale = 1.0f / std::sqrt(static_cast<float>(kBlock));
  for (int i = 0; i < kBlock; ++i) x[i] *= scale;
}

void rotate_with(const std::vector<float>& signs, float* x) {
  for (size_t i = 0; i < signs.size(); ++i) x[i] *= signs[i];
  for (size_t i = 0; i < signs.size(); i += kBlock) hadamard(x + i);
}

// Encodes one block; the squared norm of what it leaves out.
float encode(const float* x, uint8_t* out) {
  float squares = 0.0f;
  for (int i = 0; i < kBlock; ++i) squares += x[i] * x[i];
  const float bound = kBound * std::sqrt(squares / static_cast<float>(kBlock));
  std::array<uint8_t, kBlock> codes;
  float products = 0.0f, levels = 0.0f;
  for (int i = 0; i < kBlock; ++i) {
    const int outer = std::fabs(x[i]) > bound;
    codes[i] = static_cast<uint8_t>(x[i] < 0.0f ? 1 - outer : 2 + outer);
    const float level = kLevels[codes[i]];
    products += level * x[i];
    levels += level * level;
  }
  const uint16_t half = float_to_half(products / levels);
  const float scale = half_to_float(half);
  std::memcpy(out, &half, 2);
  std::fill_n(out + 2, 32, uint8_t{0});
  for (int pair = 0; pair < kBlock / 2; ++pair) {  // pair 4 g + j holds columns 8 g + j and 8 g + 4 + j
    const int column = pair / 4 * 8 + pair % 4;
    const int code = codes[column] | codes[column + 4] << 2;
    out[2 + pair / 2] = static_cast<uint8_t>(out[2 + pair / 2] | code << (pair % 2 * 4));
  }
  float error = 0.0f;
  for (int i = 0; i < kBlock; ++i) {
    const float difference = x[i] - scale * static_cast<float>(kLevels[codes[i]]);
    error += difference * difference;
  }
  return error;
}

PackedMatrix coarse(const gguf::TensorView& head, const std::vector<float>& signs,
                    std::vector<float>& spreads, ThreadPool& pool) {
  if (head.cols % kBlock != 0) {
    throw Error(ErrorKind::kUnsupported,
                "a screened head needs rows of a multiple of " + std::to_string(kBlock) +
                    " values; this model's have " + std::to_string(head.cols),
                "Open the model without it.");
  }
  const int64_t blocks = head.cols / kBlock;
  std::vector<uint8_t> bytes(static_cast<size_t>(head.rows * blocks * kBlockBytes));
  spreads.resize(static_cast<size_t>(head.rows));
  pool.parallel_for(head.rows, 256, [&](int64_t begin, int64_t end, int) {
    std::vector<float> row(static_cast<size_t>(head.cols));
    for (int64_t r = begin; r < end; ++r) {
      gguf::dequantize(head.type, head.row(r), head.cols, row.data(), head.codebook.data());
      rotate_with(signs, row.data());
      float worst = 0.0f;
      for (int64_t b = 0; b < blocks; ++b) {
        worst =
            std::max(worst, encode(row.data() + b * kBlock, bytes.data() + (r * blocks + b) * kBlockBytes));
      }
      // The error's variance is the sum over blocks of |what is left out|^2 |state|^2 / kBlock.
      spreads[static_cast<size_t>(r)] = std::sqrt(worst / static_cast<float>(kBlock));
    }
  });
  const std::array<int8_t, 32> points = codebook();
  return PackedMatrix::pack({.name = "screen of " + head.name,
                             .type = gguf::TensorType::kV2,
                             .rows = head.rows,
                             .cols = head.cols,
                             .bytes = bytes,
                             .codebook = points},
                            pool);
}

}  // namespace

ScreenedHead::ScreenedHead(const gguf::TensorView& head, ThreadPool& pool)
    : signs_(random_signs(head.cols)), rows_(coarse(head, signs_, spreads_, pool)) {}

int64_t ScreenedHead::bytes(int64_t rows, int64_t cols) {
  return rows * (cols / kBlock * kBlockBytes + static_cast<int64_t>(sizeof(float)));
}

void ScreenedHead::rotate(float* x) const { rotate_with(signs_, x); }

}  // namespace bitqwen
