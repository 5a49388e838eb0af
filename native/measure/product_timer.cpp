#include "measure/product_timer.h"

#include <algorithm>
#include <chrono>

#include "errors.h"
#include "kernels/table.h"
#include "measure/random_tensors.h"
#include "weights/layout.h"

namespace bitqwen::measure {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 24, kMostCols = int64_t{1} << 20, kMostColumns = 4096;
constexpr int64_t kRandomRows = 64;  // repeated: no kernel's time depends on the values

PackedMatrix random_matrix(gguf::TensorType type, int64_t rows, int64_t cols, uint64_t seed,
                           ThreadPool& pool) {
  const gguf::TypeInfo& info = gguf::type_info(type);
  if (rows < 1 || rows > kMostRows || cols < 1 || cols > kMostCols ||
      cols % static_cast<int64_t>(info.block_size) != 0) {
    throw Error(ErrorKind::kArgument, "no " + std::string(info.name) + " matrix is " + std::to_string(rows) +
                                          " x " + std::to_string(cols) + ": rows of a multiple of " +
                                          std::to_string(info.block_size) + " values are needed");
  }
  Random random(seed);
  Tensor tensor = random_tensor(type, std::min(rows, kRandomRows), cols, random);
  // Ternary, as generated kernels want it: without the fourth level that these codes have.
  if (type == gguf::TensorType::kTQ2_0 || type == gguf::TensorType::kQ2_0) {
    const size_t half = type == gguf::TensorType::kTQ2_0 ? info.block_bytes - 2 : 0;
    for (size_t i = 0; i < tensor.bytes.size(); ++i) {
      const size_t at = i % info.block_bytes;
      if (at != half && at != half + 1)
        tensor.bytes[i] &= static_cast<uint8_t>(~(tensor.bytes[i] >> 1 & 0x55));
    }
  }
  return PackedMatrix::pack(tensor.view, pool, preferred_ternary_layout(pool.size())).repeated(rows, pool);
}

}  // namespace

ProductTimer::ProductTimer(gguf::TensorType type, int64_t rows, int64_t cols, int threads,
                           int64_t least_bytes, uint64_t seed)
    : pool_(threads) {
  copies_.push_back(random_matrix(type, rows, cols, seed, pool_));
  while (bytes() * copies() < least_bytes) copies_.push_back(copies_.front().repeated(rows, pool_));
}

double ProductTimer::seconds(int columns, const ProductPlan& plan, int products) {
  if (columns < 1 || columns > kMostColumns) {
    throw Error(ErrorKind::kArgument, "products of " + std::to_string(columns) + " columns: 1 to " +
                                          std::to_string(kMostColumns) + " are allowed");
  }
  const int64_t rows = copies_.front().rows(), cols = copies_.front().cols();
  KernelChoice choice = kernel_choice(plan);
  if (!plan.library.empty()) {
    const auto library = GeneratedLibrary::load(plan.library);
    for (PackedMatrix& copy : copies_) {
      const std::string why = use_generated(copy, library, pool_);
      if (!why.empty()) throw Error(ErrorKind::kArgument, plan.library + ": " + why);
    }
    choice.generated = true;
  }
  for (PackedMatrix& copy : copies_) choose(copy, batch_of(columns), choice);
  const auto wanted = static_cast<size_t>(columns * cols);
  if (x_.size() < wanted) {
    Random random(1);
    x_ = random_activations(columns * cols, Shape::kNormal, random);
  }
  y_.resize(static_cast<size_t>(columns * rows));
  ActivationBatch batch(columns, cols);
  batch.start(columns, cols, copies_.front().activation_group(), preferred_tile(copies_.front(), columns));
  batch.make_tables(copies_.front());
  const auto round_activations = [&] {
    pool_.parallel_for(columns, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t c = begin; c < end; ++c) batch.set(static_cast<int>(c), x_.data() + c * cols);
    });
  };
  round_activations();
  const int64_t grain = preferred_rows(copies_.front(), columns) / kRowBlock;
  const int64_t blocks = (rows + kRowBlock - 1) / kRowBlock;
  const int count = products > 0 ? products : static_cast<int>(copies());
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) {
    const PackedMatrix& w = copies_[next_];
    next_ = (next_ + 1) % copies_.size();
    round_activations();  // tables of generated kernels are made here: they cost what they cost
    pool_.parallel_for(blocks, grain, [&](int64_t begin, int64_t end, int) {
      multiply(w, batch, y_.data(), rows, begin * kRowBlock, std::min(end * kRowBlock, rows));
    });
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / count;
}

int64_t ProductTimer::generated_bytes() const {
  const auto& generated = copies_.front().layout().generated;
  return generated ? copies_.front().rows() / generated->kernel->tile_rows * generated->kernel->tile_bytes
                   : 0;
}

ProductPlan ProductTimer::default_plan(int columns) const {
  const PackedMatrix::Layout& w = copies_.front().layout();
  const KernelTable& live = current_kernels();
  return {live.isa, default_rows(w, columns, live), live.tile_columns};
}

std::vector<Isa> ProductTimer::distinct_isas() const {
  const auto kernel = [&](Isa isa) { return kernels_of(isa).multiply[static_cast<size_t>(format())]; };
  std::vector<Isa> candidates = {current_isa()}, usable = usable_isas();
  candidates.insert(candidates.end(), usable.rbegin(), usable.rend());
  std::vector<Isa> found;
  for (const Isa isa : candidates) {
    if (isa == Isa::kScalar && !found.empty()) continue;
    const auto same = [&](Isa other) { return kernel(other) == kernel(isa); };
    if (std::none_of(found.begin(), found.end(), same)) found.push_back(isa);
  }
  return found;
}

int ProductTimer::widest_tile(Isa isa) { return kernels_of(isa).tile_columns; }

}  // namespace bitqwen::measure
