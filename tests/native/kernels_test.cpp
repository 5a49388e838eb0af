#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

#include "errors.h"
#include "kernels/isa.h"
#include "kernels/multiply.h"
#include "kernels_support.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

using namespace bitqwen;
using namespace bitqwen::testing;

namespace {

ThreadPool& pool() {
  static ThreadPool instance(2);
  return instance;
}

// y: [columns][rows], in pieces of `piece` rows.
std::vector<float> product(const PackedMatrix& w, const std::vector<float>& x, int columns,
                           int64_t piece = 0) {
  ActivationBatch batch(columns, w.cols());
  batch.start(columns, w.cols(), w.activation_group());
  for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * w.cols());
  std::vector<float> y(columns * w.rows(), std::numeric_limits<float>::quiet_NaN());
  if (piece == 0) piece = (w.rows() + kRowBlock - 1) / kRowBlock * kRowBlock;
  for (int64_t r = 0; r < w.rows(); r += piece) {
    multiply(w, batch, y.data(), w.rows(), r, std::min(r + piece, w.rows()));
  }
  return y;
}

// What rounding each activation to its group's int8 grid, and float32 sums, may cost.
void check_against_doubles(const Tensor& tensor, const PackedMatrix& w, const std::vector<float>& x,
                           int columns, const std::vector<float>& y) {
  const std::vector<float> weights = tensor.values();
  const int64_t group = w.activation_group();
  for (int c = 0; c < columns; ++c) {
    const float* xc = x.data() + c * w.cols();
    for (int64_t r = 0; r < w.rows(); ++r) {
      double exact = 0, magnitude = 0, rounding = 0;
      for (int64_t k = 0; k < w.cols(); ++k) {
        const double weight = weights[r * w.cols() + k];
        exact += weight * xc[k];
        magnitude += std::abs(weight * xc[k]);
        if (group == 0) continue;
        float largest = 0;
        for (int64_t j = k / group * group; j < (k / group + 1) * group; ++j)
          largest = std::max(largest, std::abs(xc[j]));
        rounding += std::abs(weight) * largest / 254;
        magnitude += std::abs(weight) * largest;
      }
      REQUIRE(std::abs(y[c * w.rows() + r] - exact) <= rounding + 2e-5 * magnitude);
    }
  }
}

std::string type_name(gguf::TensorType type) { return std::string(gguf::type_info(type).name); }

struct Isas {
  std::vector<Isa> usable = usable_isas();
  Isas() {
    std::string here, absent;
    for (const Isa isa : built_isas()) {
      const bool runs = std::find(usable.begin(), usable.end(), isa) != usable.end();
      std::string& list = runs ? here : absent;
      list += (list.empty() ? "" : ", ") + std::string(isa_name(isa));
    }
    MESSAGE("instruction sets tested on this CPU: " << here << "; built, but not runnable here: "
                                                    << (absent.empty() ? "none" : absent));
  }
};

const std::vector<Isa>& isas() {
  static const Isas instance;
  return instance.usable;
}

}  // namespace

TEST_CASE("scalar products are within the rounding of the activations") {
  Random random(1);
  set_isa(Isa::kScalar);
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(type_name(type));
    const int64_t block = gguf::type_info(type).block_size;
    const int64_t unit = block < 32 ? 32 : block;
    for (const int64_t blocks : {1, 3}) {
      const Tensor tensor = random_tensor(type, 21, unit * blocks, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      for (const Shape shape : {Shape::kNormal, Shape::kExtreme, Shape::kSparse}) {
        const std::vector<float> x = random_activations(5 * w.cols(), shape, random);
        check_against_doubles(tensor, w, x, 5, product(w, x, 5));
      }
    }
  }
}

TEST_CASE("every instruction set gives the scalar kernels' bits") {
  Random random(2);
  const std::vector<Isa> all = isas();
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(type_name(type));
    const int64_t block = gguf::type_info(type).block_size;
    for (const int64_t rows : {1, 15, 16, 17, 33, 64, 83, 176}) {
      const int64_t cols =
          block == 1 ? 1 + random.below(300) : block * (1 + random.below(block == 256 ? 5 : 23));
      const Tensor tensor = random_tensor(type, rows, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      for (const int columns : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 33}) {
        const Shape shape = static_cast<Shape>(random.below(4));
        const std::vector<float> x = random_activations(columns * cols, shape, random);
        set_isa(Isa::kScalar);
        const std::vector<float> expected = product(w, x, columns);
        for (const Isa isa : all) {
          CAPTURE(isa_name(isa));
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(columns);
          set_isa(isa);
          REQUIRE(same_bits(product(w, x, columns), expected));
        }
      }
    }
  }
}

TEST_CASE("five trits a byte give the bits of two-bit codes, on every instruction set") {
  Random random(10);
  for (const int64_t rows : {1, 16, 17, 83, 150}) {
    const int64_t cols = 256 * (1 + random.below(11));
    const Tensor tensor = random_tensor(gguf::TensorType::kTQ1_0, rows, cols, random);
    const PackedMatrix two = PackedMatrix::pack(tensor.view, pool());
    const PackedMatrix five = PackedMatrix::pack(tensor.view, pool(), TernaryLayout::kFiveInByte);
    REQUIRE(five.bytes() <= two.bytes());
    for (int columns = 1; columns <= 9; ++columns) {
      for (const Shape shape : {Shape::kNormal, Shape::kExtreme}) {
        const std::vector<float> x = random_activations(columns * cols, shape, random);
        set_isa(Isa::kScalar);
        const std::vector<float> expected = product(two, x, columns);
        for (const Isa isa : isas()) {
          CAPTURE(isa_name(isa));
          CAPTURE(rows);
          CAPTURE(cols);
          CAPTURE(columns);
          set_isa(isa);
          REQUIRE(same_bits(product(five, x, columns), expected));
          REQUIRE(same_bits(product(five, x, columns, 48), expected));
        }
      }
    }
  }
}

TEST_CASE("long rows: the blocked loops give the scalar kernels' bits") {
  Random random(3);
  for (const gguf::TensorType type : kAllTypes) {
    CAPTURE(type_name(type));
    const int64_t cols = 256 * 9;
    const Tensor tensor = random_tensor(type, 70, cols, random);
    const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
    const std::vector<float> x = random_activations(20 * cols, Shape::kNormal, random);
    set_isa(Isa::kScalar);
    const std::vector<float> expected = product(w, x, 20);
    for (const Isa isa : isas()) {
      CAPTURE(isa_name(isa));
      set_isa(isa);
      REQUIRE(same_bits(product(w, x, 20), expected));
      REQUIRE(same_bits(product(w, x, 20, preferred_rows(w, 20)), expected));
    }
  }
}

TEST_CASE("batch, row pieces and threads do not change a bit") {
  Random random(4);
  for (const Isa isa : isas()) {
    CAPTURE(isa_name(isa));
    set_isa(isa);
    for (const gguf::TensorType type : kAllTypes) {
      CAPTURE(type_name(type));
      const int64_t cols = 512, rows = 150;
      const int columns = 11;
      const Tensor tensor = random_tensor(type, rows, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      const std::vector<float> x = random_activations(columns * cols, Shape::kNormal, random);
      const std::vector<float> whole = product(w, x, columns);
      for (const int64_t piece : {16, 32, 48, 80}) REQUIRE(same_bits(product(w, x, columns, piece), whole));
      for (int c = 0; c < columns; ++c) {
        const std::vector<float> one(x.begin() + c * cols, x.begin() + (c + 1) * cols);
        const std::vector<float> alone(whole.begin() + c * rows, whole.begin() + (c + 1) * rows);
        REQUIRE(same_bits(product(w, one, 1), alone));
      }
      ActivationBatch batch(columns, cols);
      batch.start(columns, cols, w.activation_group());
      pool().parallel_for(columns, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t c = begin; c < end; ++c) batch.set(static_cast<int>(c), x.data() + c * cols);
      });
      std::vector<float> y(columns * rows);
      pool().parallel_for((rows + kRowBlock - 1) / kRowBlock, 2, [&](int64_t begin, int64_t end, int) {
        multiply(w, batch, y.data(), rows, begin * kRowBlock, std::min(end * kRowBlock, rows));
      });
      REQUIRE(same_bits(y, whole));
    }
  }
}

TEST_CASE("activations: zero gives zero, what is not finite stays visible, tiny and huge are kept") {
  Random random(5);
  for (const Isa isa : isas()) {
    CAPTURE(isa_name(isa));
    set_isa(isa);
    for (const gguf::TensorType type : kAllTypes) {
      CAPTURE(type_name(type));
      const int64_t cols = 256;
      const Tensor tensor = random_tensor(type, 20, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      for (const float v : product(w, random_activations(2 * cols, Shape::kZero, random), 2))
        REQUIRE(v == 0.0f);
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
            std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
        std::vector<float> x = random_activations(2 * cols, Shape::kNormal, random);
        x[cols + 77] = bad;
        const std::vector<float> y = product(w, x, 2);
        for (int r = 0; r < 20; ++r) {
          REQUIRE(std::isfinite(y[r]));
          REQUIRE_FALSE(std::isfinite(y[20 + r]));
        }
      }
      for (const float size : {1e-30f, 1e-36f, 1e30f}) {
        std::vector<float> x = random_activations(cols, Shape::kNormal, random);
        for (float& v : x) v *= size;
        if (size > 1e-35f || w.activation_group() == 0) {
          const std::vector<float> y = product(w, x, 1);
          float largest = 0;
          for (const float v : y) largest = std::max(largest, std::abs(v));
          REQUIRE(largest > 0.0f);
          REQUIRE(std::isfinite(largest));
        }
        set_isa(Isa::kScalar);
        const std::vector<float> expected = product(w, x, 1);
        set_isa(isa);
        REQUIRE(same_bits(product(w, x, 1), expected));
      }
    }
  }
}

TEST_CASE("one batch object serves matrices of different formats and widths") {
  Random random(6);
  for (const Isa isa : isas()) {
    CAPTURE(isa_name(isa));
    set_isa(isa);
    ActivationBatch batch(9, 1024);
    for (int round = 0; round < 40; ++round) {
      const gguf::TensorType type = kAllTypes[random.below(std::size(kAllTypes))];
      CAPTURE(type_name(type));
      const int64_t cols = 256 * (1 + random.below(4));
      const int columns = 1 + random.below(9);
      const Tensor tensor = random_tensor(type, 40, cols, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      const std::vector<float> x = random_activations(columns * cols, Shape::kNormal, random);
      batch.start(columns, cols, w.activation_group());
      for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * cols);
      std::vector<float> y(columns * 40);
      multiply(w, batch, y.data(), 40, 0, 40);
      REQUIRE(same_bits(y, product(w, x, columns)));
    }
  }
}

TEST_CASE("an output stride leaves what lies between untouched") {
  Random random(7);
  for (const Isa isa : isas()) {
    CAPTURE(isa_name(isa));
    set_isa(isa);
    const Tensor tensor = random_tensor(gguf::TensorType::kQ4_K, 37, 512, random);
    const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
    for (const int columns : {1, 3, 14}) {
      const std::vector<float> x = random_activations(columns * 512, Shape::kNormal, random);
      const std::vector<float> expected = product(w, x, columns);
      ActivationBatch batch(columns, 512);
      batch.start(columns, 512, w.activation_group());
      for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * 512);
      std::vector<float> y(columns * 50 + 16, 7.0f);
      multiply(w, batch, y.data(), 50, 16, 37);
      for (int c = 0; c < columns; ++c) {
        for (int r = 0; r < 50; ++r)
          REQUIRE(y[c * 50 + r] == (r >= 16 && r < 37 ? expected[c * 37 + r] : 7.0f));
      }
    }
  }
}

TEST_CASE("misuse is refused with what was given and what is allowed") {
  Random random(8);
  const Tensor tensor = random_tensor(gguf::TensorType::kQ4_0, 40, 64, random);
  const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
  ActivationBatch batch(2, 64);
  CHECK_THROWS_AS(ActivationBatch(0, 64), Error);
  CHECK_THROWS_AS(batch.start(3, 64, 32), Error);
  CHECK_THROWS_AS(batch.start(1, 128, 32), Error);
  CHECK_THROWS_AS(batch.start(1, 64, 48), Error);
  CHECK_THROWS_AS(batch.start(1, 33, 32), Error);
  std::vector<float> y(40);
  batch.start(1, 64, 64);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 40, 0, 40), Error);  // another activation group
  batch.start(1, 32, 32);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 40, 0, 40), Error);  // another width
  batch.start(1, 64, 32);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 40, 8, 40), Error);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 40, 0, 24), Error);
  CHECK_THROWS_AS(multiply(w, batch, y.data(), 40, 0, 48), Error);
}

TEST_CASE("preferred rows are whole row blocks, and at least one") {
  Random random(9);
  for (const Isa isa : isas()) {
    set_isa(isa);
    for (const int64_t rows : {1, 16, 100, 4000}) {
      const Tensor tensor = random_tensor(gguf::TensorType::kQ8_0, rows, 256, random);
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      for (const int columns : {1, 4, 16, 512}) {
        CHECK(preferred_rows(w, columns) >= kRowBlock);
        CHECK(preferred_rows(w, columns) % kRowBlock == 0);
      }
    }
  }
}
