#include "measure/self_test.h"

#include <limits>

#include "kernels/multiply.h"
#include "measure/random_tensors.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen::measure {
namespace {

// Tails of rows and of columns, and the widths that fill every tile.
constexpr int64_t kRows[] = {1, 17, 64, 83};
constexpr int kColumns[] = {1, 3, 8, 13};

struct RestoreIsa {
  Isa isa = current_isa();
  ~RestoreIsa() { set_isa(isa); }
};

// y: [columns][rows]
std::vector<float> product(const Tensor& tensor, const std::vector<float>& x, int columns, ThreadPool& pool) {
  const PackedMatrix w = PackedMatrix::pack(tensor.view, pool);
  ActivationBatch batch(columns, w.cols());
  batch.start(columns, w.cols(), w.activation_group());
  for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * w.cols());
  std::vector<float> y(static_cast<size_t>(columns * w.rows()), std::numeric_limits<float>::quiet_NaN());
  multiply(w, batch, y.data(), w.rows(), 0, w.rows());
  return y;
}

}  // namespace

std::vector<SelfTestResult> self_test(uint64_t seed) {
  const RestoreIsa restore;
  ThreadPool pool(1);
  Random random(seed);
  std::vector<SelfTestResult> results;
  for (const gguf::TensorType type : kAllTypes) {
    const gguf::TypeInfo& info = gguf::type_info(type);
    std::vector<SelfTestResult> of_type;
    for (const Isa isa : usable_isas()) {
      if (isa != Isa::kScalar) of_type.push_back({isa, std::string(info.name)});
    }
    for (const int64_t rows : kRows) {
      const int64_t cols = info.block_size == 1
                               ? 1 + random.below(300)
                               : info.block_size * (1 + random.below(info.block_size == 256 ? 5 : 23));
      const Tensor tensor = random_tensor(type, rows, cols, random);
      for (const int columns : kColumns) {
        const auto shape = static_cast<Shape>(random.below(4));
        const std::vector<float> x = random_activations(columns * cols, shape, random);
        set_isa(Isa::kScalar);
        const std::vector<float> expected = product(tensor, x, columns, pool);
        for (SelfTestResult& result : of_type) {
          set_isa(result.isa);
          ++result.products;
          if (!same_bits(product(tensor, x, columns, pool), expected)) ++result.wrong;
        }
      }
    }
    results.insert(results.end(), of_type.begin(), of_type.end());
  }
  return results;
}

}  // namespace bitqwen::measure
