// The x86 kernels through SIMDe against the scalar ones: what a CPU without the instructions cannot run.
#include <doctest/doctest.h>

#include <algorithm>
#include <limits>

#include "kernels/activations.h"
#include "kernels/isa.h"
#include "kernels/multiply.h"
#include "kernels/plan.h"
#include "kernels_support.h"
#include "simde/emulated.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

using namespace bitqwen;
using namespace bitqwen::testing;

namespace {

ThreadPool& pool() {
  static ThreadPool instance(1);
  return instance;
}

const std::vector<const KernelTable*>& emulated() {
  static const std::vector<const KernelTable*> tables = [] {
    std::vector<const KernelTable*> all = {&emulated_avx2_kernels(), &emulated_avxvnni_kernels(),
                                           &emulated_avx512_kernels(), &emulated_avx512vnni_kernels(),
                                           &emulated_avx512vbmi_kernels()};
    std::string names;
    for (const KernelTable* table : all) {
      names += (names.empty() ? "" : ", ") + std::string(isa_name(table->isa));
    }
    MESSAGE("instruction sets emulated through SIMDe: " << names);
    return all;
  }();
  return tables;
}

// y: [columns][rows], with activations quantised and multiplied by `kernels`, in pieces of `piece` rows.
std::vector<float> product(const KernelTable& kernels, PackedMatrix& w, const std::vector<float>& x,
                           int columns, int64_t piece) {
  choose(w, batch_of(columns), {.kernels = &kernels});
  ActivationBatch batch(columns, w.cols());
  batch.start(columns, w.cols(), w.activation_group(), preferred_tile(w, columns));
  for (int c = 0; c < columns; ++c) {
    const float* from = x.data() + c * w.cols();
    if (w.activation_group() == 0) {
      batch.set(c, from);
    } else {
      // set() would quantise with the live kernels.
      kernels.quantize(from, const_cast<ActivationBatch::Layout&>(batch.layout()), c);
    }
  }
  std::vector<float> y(columns * w.rows(), std::numeric_limits<float>::quiet_NaN());
  for (int64_t r = 0; r < w.rows(); r += piece) {
    multiply(w, batch, y.data(), w.rows(), r, std::min(r + piece, w.rows()));
  }
  return y;
}

void check(PackedMatrix& w, const std::vector<float>& x, int columns, int64_t piece) {
  CAPTURE(w.rows());
  CAPTURE(w.cols());
  CAPTURE(columns);
  const std::vector<float> expected = product(scalar_kernels(), w, x, columns, w.rows() + kRowBlock);
  for (const KernelTable* table : emulated()) {
    const std::string name = "SIMDe: " + std::string(isa_name(table->isa));
    CAPTURE(name);
    REQUIRE(same_bits(product(*table, w, x, columns, piece), expected));
  }
}

}  // namespace

TEST_CASE("SIMDe: every emulated instruction set gives the scalar kernels' bits") {
  Random random(20);
  for (const gguf::TensorType type : kAllTypes) {
    const std::string name(gguf::type_info(type).name);
    CAPTURE(name);
    const int64_t block = gguf::type_info(type).block_size;
    for (const int64_t rows : {1, 16, 83}) {
      const int64_t cols =
          block == 1 ? 1 + random.below(90) : block * (1 + random.below(block == 256 ? 2 : 5));
      const Tensor tensor = random_tensor(type, rows, cols, random);
      PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
      for (const int columns : {1, 2, 3, 4, 5, 6, 7, 8, 13}) {
        const auto shape = static_cast<Shape>(random.below(4));
        check(w, random_activations(columns * cols, shape, random), columns, 48);
      }
    }
  }
}

TEST_CASE("SIMDe: five trits a byte") {
  Random random(21);
  for (const int64_t rows : {1, 83}) {
    const int64_t cols = 256 * (1 + random.below(3));
    const Tensor tensor = random_tensor(gguf::TensorType::kTQ1_0, rows, cols, random);
    PackedMatrix w = PackedMatrix::pack(tensor.view, pool(), TernaryLayout::kFiveInByte);
    for (int columns = 1; columns <= 8; ++columns) {
      for (const Shape shape : {Shape::kNormal, Shape::kExtreme}) {
        check(w, random_activations(columns * cols, shape, random), columns, 48);
      }
    }
  }
}

TEST_CASE("SIMDe: a stripe's end and what is not finite") {
  Random random(22);
  for (const gguf::TensorType type : {gguf::TensorType::kQ4_K, gguf::TensorType::kV2_5}) {
    const int64_t cols = 256 * 9;
    const Tensor tensor = random_tensor(type, 20, cols, random);
    PackedMatrix w = PackedMatrix::pack(tensor.view, pool());
    check(w, random_activations(2 * cols, Shape::kNormal, random), 2, 16);
    std::vector<float> x = random_activations(cols, Shape::kNormal, random);
    x[77] = std::numeric_limits<float>::infinity();
    for (const KernelTable* table : emulated()) {
      for (const float v : product(*table, w, x, 1, 32)) REQUIRE_FALSE(std::isfinite(v));
    }
  }
}
