#include "kernels/plan.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <vector>

#include "errors.h"
#include "kernels/multiply.h"
#include "kernels_support.h"
#include "measure/product_timer.h"
#include "threads/pool.h"

using namespace bitqwen;
using namespace bitqwen::testing;

namespace {

ThreadPool& pool() {
  static ThreadPool instance(2);
  return instance;
}

// y: [columns][rows], as the engine computes it.
std::vector<float> product(const PackedMatrix& w, const std::vector<float>& x, int columns) {
  ActivationBatch batch(columns, w.cols());
  batch.start(columns, w.cols(), w.activation_group(), preferred_tile(w, columns));
  for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * w.cols());
  std::vector<float> y(columns * w.rows(), std::numeric_limits<float>::quiet_NaN());
  const int64_t blocks = (w.rows() + kRowBlock - 1) / kRowBlock;
  pool().parallel_for(blocks, preferred_rows(w, columns) / kRowBlock, [&](int64_t begin, int64_t end, int) {
    multiply(w, batch, y.data(), w.rows(), begin * kRowBlock, std::min(end * kRowBlock, w.rows()));
  });
  return y;
}

constexpr int kBatches[] = {1, 3, 21};

}  // namespace

TEST_CASE("no plan changes a bit: any instruction set, rows at a time and tile") {
  Random random(1);
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(gguf::type_info(type).name);
    const int64_t cols = 512;
    const Tensor tensor = random_tensor(type, 150, cols, random);
    PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
    for (const int columns : kBatches) {
      const std::vector<float> x = random_activations(columns * cols, Shape::kNormal, random);
      const std::vector<float> expected = product(w, x, columns);
      for (const Isa isa : usable_isas()) {
        for (const int64_t rows : {0, 16, 48, 160, 4096}) {
          for (const int tile : {0, 1, 3}) {
            CAPTURE(isa_name(isa));
            CAPTURE(rows);
            CAPTURE(tile);
            choose(w, batch_of(columns), kernel_choice({isa, rows, tile}));
            if (rows > 0) CHECK(preferred_rows(w, columns) == std::min<int64_t>(rows, 160));
            if (tile > 0) CHECK(preferred_tile(w, columns) == tile);
            REQUIRE(same_bits(product(w, x, columns), expected));
          }
        }
      }
      choose(w, batch_of(columns), {});
    }
  }
}

TEST_CASE("a plan finds the matrices that one loop multiplies") {
  Random random(2);
  const auto matrix = [&](gguf::TensorType type, int64_t rows) {
    return PackedMatrix::pack(random_tensor(type, rows, 256, random).view, pool());
  };
  PackedMatrix query = matrix(gguf::TensorType::kQ4_K, 96), key = matrix(gguf::TensorType::kQ4_K, 32),
               value = matrix(gguf::TensorType::kQ6_K, 32);
  KernelPlan plan;
  plan.set({Format::kQ4_K, 128, 256, Batch::kOne}, {Isa::kScalar, 64, 2});
  plan.set({Format::kQ4_K, 96, 256, Batch::kFew}, {Isa::kScalar, 32, 1});  // no product of that many rows
  plan.set({Format::kQ6_K, 32, 256, Batch::kMany}, {Isa::kScalar, 16, 3});
  const int64_t before = preferred_rows(query, 2);
  const std::array<PackedMatrix*, 3> product = {&query, &key, &value};
  plan.apply(product, pool());
  CHECK(preferred_rows(query, 1) == 64);
  CHECK(preferred_rows(key, 1) == 32);  // it has no more
  CHECK(preferred_tile(key, 1) == 2);
  CHECK(preferred_rows(query, 2) == before);
  CHECK(preferred_rows(value, 5) == 16);
  CHECK(preferred_tile(value, 5) == 3);
}

TEST_CASE("plans that cannot be are refused") {
  CHECK_THROWS_AS(kernel_choice({Isa::kScalar, 8, 0}), Error);
  CHECK_THROWS_AS(kernel_choice({Isa::kScalar, -16, 0}), Error);
  CHECK_THROWS_AS(kernel_choice({Isa::kScalar, 16, -1}), Error);
  CHECK_THROWS_AS(kernel_choice({Isa::kScalar, 16, 5}), Error);  // the scalar kernels take four
  const std::vector<Isa> built = built_isas();
  const bool arm = std::find(built.begin(), built.end(), Isa::kNeon) != built.end();
  CHECK_THROWS_AS(kernel_choice({arm ? Isa::kAvx2 : Isa::kNeon, 16, 1}), Error);
  CHECK_THROWS_AS(format_named("Q9_X"), Error);
  for (int i = 0; i < kFormatCount; ++i) {
    const std::string_view name = format_name(static_cast<Format>(i));
    CHECK(format_name(format_named(name)) == name);
  }
}

TEST_CASE("activations in tiles that the chosen kernels do not take are refused") {
  Random random(3);
  const Tensor tensor = random_tensor(gguf::TensorType::kQ8_0, 32, 64, random);
  PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
  choose(w, Batch::kMany, kernel_choice({Isa::kScalar, 0, 0}));
  ActivationBatch batch(16, 64);
  batch.start(16, 64, 32, 16);
  std::vector<float> y(16 * 32);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 32, 0, 32), Error);
}

TEST_CASE("the timer times what it is asked for") {
  measure::ProductTimer timer(gguf::TensorType::kQ2_0, 100, 128, 2, 1 << 16, 1);
  CHECK(timer.bytes() * timer.copies() >= 1 << 16);
  CHECK(timer.format() == Format::kQ2_0);
  const std::vector<Isa> isas = timer.distinct_isas();
  REQUIRE_FALSE(isas.empty());
  CHECK(isas.front() == current_isa());
  for (const Isa isa : isas) {
    for (const int columns : kBatches) CHECK(timer.seconds(columns, {isa, 32, 2}) > 0);
  }
  CHECK_THROWS_AS(measure::ProductTimer(gguf::TensorType::kQ4_K, 16, 100, 1, 0, 1), Error);
  CHECK_THROWS_AS(measure::ProductTimer(gguf::TensorType::kQ4_K, 0, 256, 1, 0, 1), Error);
  CHECK_THROWS_AS(timer.seconds(0, {isas.front(), 0, 0}), Error);
}
