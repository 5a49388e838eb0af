// The encoders: the same bytes from every instruction set and thread count, optima, hostile values.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "errors.h"
#include "gguf/dequantize.h"
#include "kernels/isa.h"
#include "quant/encode.h"
#include "threads/pool.h"

using namespace bitqwen;
using gguf::TensorType;

namespace {

struct Case {
  TensorType type;
  Fit fit;
};

std::vector<Case> every_case() {
  std::vector<Case> cases;
  for (const TensorType type :
       {TensorType::kF32, TensorType::kF16, TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0,
        TensorType::kQ2_K, TensorType::kQ3_K, TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K,
        TensorType::kQ2_0, TensorType::kTQ2_0}) {
    for (const Fit fit : {Fit::kPlain, Fit::kMse, Fit::kAbsmean, Fit::kTernary}) {
      if (can_encode(type, fit)) cases.push_back({type, fit});
    }
  }
  return cases;
}

std::string name_of(const Case& c) {
  return std::string(gguf::type_info(c.type).name) + ", fit " + std::to_string(static_cast<int>(c.fit));
}

// Heavy-tailed, with what breaks encoders in the first rows.
std::vector<float> hostile_matrix(int64_t rows, int64_t cols) {
  std::mt19937 random(1);
  std::student_t_distribution<float> values(4.0f);
  std::vector<float> matrix(static_cast<size_t>(rows * cols));
  for (float& value : matrix) value = values(random) * 0.02f;
  const auto fill = [&](int64_t row, float value) { std::fill_n(matrix.begin() + row * cols, cols, value); };
  fill(0, 0.0f);
  fill(1, 1e-42f);
  fill(2, 0.5f);
  fill(3, -0.25f);
  fill(4, 0.0f);
  matrix[4 * cols + 7] = -3e4f;
  fill(5, 1e-9f);
  matrix[5 * cols] = 1e3f;
  for (int64_t i = 0; i < cols; ++i) matrix[6 * cols + i] = i % 2 ? 1e-30f : -1e-38f;
  return matrix;
}

struct Encoded {
  std::vector<uint8_t> bytes;
  EncodeResult result;
};

Encoded encoded(const Case& c, const std::vector<float>& matrix, int64_t cols, int threads,
                std::span<const float> importance = {}) {
  const gguf::TypeInfo& info = gguf::type_info(c.type);
  const int64_t rows = std::ssize(matrix) / cols;
  Encoded out;
  out.bytes.resize(static_cast<size_t>(rows * cols / info.block_size * info.block_bytes));
  ThreadPool pool(threads);
  out.result = encode(c.type, c.fit, matrix.data(), rows, cols, importance, out.bytes.data(), pool);
  return out;
}

std::vector<float> decoded(const Case& c, const std::vector<uint8_t>& bytes, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  gguf::dequantize(c.type, bytes.data(), count, values.data());
  return values;
}

}  // namespace

TEST_CASE("every instruction set and thread count gives the scalar path's bytes") {
  constexpr int64_t kRows = 29, kCols = 768;
  const std::vector<float> matrix = hostile_matrix(kRows, kCols);
  std::vector<float> importance(kCols);
  for (int64_t i = 0; i < kCols; ++i) importance[i] = static_cast<float>(i % 13) * 0.5f;
  const Isa live = current_isa();
  for (const Case& c : every_case()) {
    CAPTURE(name_of(c));
    for (const std::span<const float> weights :
         {std::span<const float>{}, std::span<const float>(importance)}) {
      set_isa(Isa::kScalar);
      const Encoded scalar = encoded(c, matrix, kCols, 1, weights);
      CHECK(std::isfinite(scalar.result.error));
      for (const Isa isa : usable_isas()) {
        CAPTURE(isa_name(isa));
        set_isa(isa);
        const Encoded other = encoded(c, matrix, kCols, 3, weights);
        CHECK(other.bytes == scalar.bytes);
        CHECK(other.result.error == scalar.result.error);
        CHECK(other.result.energy == scalar.result.energy);
      }
    }
  }
  set_isa(live);
}

TEST_CASE("the reported error is that of the bytes") {
  constexpr int64_t kRows = 12, kCols = 512;
  const std::vector<float> matrix = hostile_matrix(kRows, kCols);
  for (const Case& c : every_case()) {
    CAPTURE(name_of(c));
    const Encoded out = encoded(c, matrix, kCols, 2);
    const std::vector<float> values = decoded(c, out.bytes, kRows * kCols);
    double error = 0, energy = 0;
    for (size_t i = 0; i < matrix.size(); ++i) {
      const double difference = static_cast<double>(matrix[i]) - values[i];
      error += difference * difference;
      energy += static_cast<double>(matrix[i]) * matrix[i];
    }
    CHECK(out.result.error == doctest::Approx(error).epsilon(1e-12));
    CHECK(out.result.energy == doctest::Approx(energy).epsilon(1e-12));
  }
}

TEST_CASE("two-bit codes reach the best scale of either sign") {
  constexpr int kSize = 64;
  std::mt19937 random(2);
  std::student_t_distribution<float> draws(5.0f);
  for (int trial = 0; trial < 40; ++trial) {
    std::vector<float> block(kSize);
    for (float& value : block) value = draws(random) + (trial % 3 == 0 ? 0.5f : 0.0f);
    double mean = 0;
    for (const float value : block) mean += static_cast<double>(value) * value / kSize;
    const auto loss = [&](double scale) {
      double total = 0;
      for (const float value : block) {
        const double code = std::clamp(std::nearbyint(value / scale), -1.0, 2.0);
        const double rest = value - scale * code;
        total += std::sqrt(mean + static_cast<double>(value) * value) * rest * rest;
      }
      return total;
    };
    double best = std::numeric_limits<double>::infinity();
    for (int k = 1; k <= 20000; ++k) best = std::min({best, loss(k * 4e-4), loss(k * -4e-4)});
    const Case c{TensorType::kQ2_0, Fit::kMse};
    const std::vector<float> values = decoded(c, encoded(c, block, kSize, 1).bytes, kSize);
    double ours = 0;
    for (int i = 0; i < kSize; ++i) {
      const double rest = static_cast<double>(block[i]) - values[i];
      ours += std::sqrt(mean + static_cast<double>(block[i]) * block[i]) * rest * rest;
    }
    CHECK(ours <= best * 1.0001);
  }
}

TEST_CASE("values that are not finite, or too large, are told and break nothing") {
  constexpr int64_t kRows = 9, kCols = 256;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {std::nanf(""), infinity, -infinity, 3e38f, -3e38f}) {
    std::vector<float> matrix = hostile_matrix(kRows, kCols);
    matrix[8 * kCols + 100] = value;
    for (const Case& c : every_case()) {
      CAPTURE(name_of(c));
      CAPTURE(value);
      const EncodeResult result = encoded(c, matrix, kCols, 2).result;
      CHECK(std::isfinite(result.energy) == std::isfinite(value));
      const bool wide = c.type == TensorType::kF32 || c.type == TensorType::kBF16;
      CHECK(std::isfinite(result.error) == (wide && std::isfinite(value)));
    }
  }
}

TEST_CASE("what does not fit is refused") {
  std::vector<float> matrix(512);
  std::vector<uint8_t> out(4096);
  ThreadPool pool(1);
  const std::vector<float> short_importance(128, 1.0f), negative(256, -1.0f);
  CHECK_THROWS_AS(encode(TensorType::kQ4_K, Fit::kMse, matrix.data(), 4, 128, {}, out.data(), pool), Error);
  CHECK_THROWS_AS(encode(TensorType::kTQ1_0, Fit::kMse, matrix.data(), 2, 256, {}, out.data(), pool), Error);
  CHECK_THROWS_AS(encode(TensorType::kTQ2_0, Fit::kMse, matrix.data(), 2, 256, {}, out.data(), pool), Error);
  CHECK_THROWS_AS(
      encode(TensorType::kQ4_K, Fit::kMse, matrix.data(), 2, 256, short_importance, out.data(), pool), Error);
  CHECK_THROWS_AS(encode(TensorType::kQ4_K, Fit::kMse, matrix.data(), 2, 256, negative, out.data(), pool),
                  Error);
}
