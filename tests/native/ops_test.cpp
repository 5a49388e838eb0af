#include "ops/ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "half.h"

using namespace bitqwen;

namespace {

struct Named {
  std::string name;
  const OpsTable* ops;
};

// Every table that this CPU runs, the baseline first.
std::vector<Named> tables() {
  std::vector<Named> out = {{"baseline", &baseline_ops()}};
#if defined(__x86_64__)
  const std::vector<Isa> usable = usable_isas();
  const auto has = [&](Isa isa) { return std::ranges::find(usable, isa) != usable.end(); };
  if (has(Isa::kAvx2)) out.push_back({"avx2", &avx2_ops()});
  if (has(Isa::kAvx512)) out.push_back({"avx512", &avx512_ops()});
#endif
  return out;
}

std::vector<float> normal(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = distribution(generator);
  return out;
}

// Pages with random keys and values of one head, written by the table's own store_kv.
struct Cache {
  Cache(const OpsTable& ops, KvType type, int positions, int head_dim)
      : keys(normal(static_cast<size_t>(positions) * head_dim, 1, 0.5f)),
        values(normal(static_cast<size_t>(positions) * head_dim, 2)),
        centre(normal(static_cast<size_t>(head_dim), 3, 4.0f)) {
    const int count = (positions + kPagePositions - 1) / kPagePositions;
    const size_t bytes = size_t{kPagePositions} * head_dim * 2, scales = size_t{kPagePositions} * 4;
    for (int p = 0; p < positions; ++p) {  // keys lie around the centre, as Qwen2.5's do around the bias
      for (int d = 0; d < head_dim; ++d) keys[static_cast<size_t>(p) * head_dim + d] += centre[d];
    }
    memory.resize(static_cast<size_t>(count));
    floats.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      memory[i].resize(2 * bytes);
      floats[i].resize(2 * scales + head_dim);
      pages.push_back({memory[i].data(), memory[i].data() + bytes, floats[i].data(),
                       reinterpret_cast<uint8_t*>(floats[i].data() + scales), floats[i].data() + 2 * scales});
    }
    for (int p = 0; p < positions; ++p) {
      ops.store_kv(pages[p / kPagePositions], type, p % kPagePositions,
                   &keys[static_cast<size_t>(p) * head_dim], &values[static_cast<size_t>(p) * head_dim],
                   centre.data(), head_dim);
    }
  }

  std::vector<float> keys, values, centre;
  std::vector<std::vector<uint8_t>> memory;
  std::vector<std::vector<float>> floats;
  std::vector<KvPage> pages;
};

std::vector<float> attend(const OpsTable& ops, const Cache& cache, KvType type, int positions, int chunk,
                          const std::vector<float>& queries, int heads, int head_dim) {
  std::vector<float> scratch(static_cast<size_t>(heads) * kPagePositions), out(queries.size());
  std::vector<float> memory[2];
  const auto partial = [&](int i) {
    memory[i].resize(static_cast<size_t>(heads) * (head_dim + 2));
    float* p = memory[i].data();
    return PartialAttention{p, p + heads, p + 2 * heads};
  };
  for (int begin = 0; begin < positions; begin += chunk) {
    const PartialAttention part = partial(begin > 0);
    ops.attend(cache.pages.data() + begin / kPagePositions, type, std::min(chunk, positions - begin),
               queries.data(), heads, head_dim, scratch.data(), part);
    if (begin > 0) ops.merge(partial(0), part, heads, head_dim);
  }
  ops.finish(partial(0), heads, head_dim, out.data());
  return out;
}

std::vector<double> reference(const Cache& cache, int positions, const std::vector<float>& queries, int heads,
                              int head_dim) {
  std::vector<double> out(queries.size());
  for (int h = 0; h < heads; ++h) {
    std::vector<double> scores(static_cast<size_t>(positions));
    for (int p = 0; p < positions; ++p) {
      for (int d = 0; d < head_dim; ++d) {
        scores[p] += double{queries[static_cast<size_t>(h) * head_dim + d]} *
                     cache.keys[static_cast<size_t>(p) * head_dim + d];
      }
    }
    const double highest = *std::ranges::max_element(scores);
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - highest);
    for (int p = 0; p < positions; ++p) {
      for (int d = 0; d < head_dim; ++d) {
        out[static_cast<size_t>(h) * head_dim + d] +=
            scores[p] / total * cache.values[static_cast<size_t>(p) * head_dim + d];
      }
    }
  }
  return out;
}

}  // namespace

TEST_CASE("attention is softmax(q k) v for any number of heads, dimensions and positions") {
  for (const auto& [name, ops] : tables()) {
    for (const KvType type : {KvType::kF16, KvType::kQ8}) {
      for (const int head_dim : {16, 48, 64, 128}) {
        for (const int positions : {1, 63, 64, 65, 300}) {
          const Cache cache(*ops, type, positions, head_dim);
          for (const int heads : {1, 2, 3, 5, 6, 7, 8, 11}) {
            const std::vector<float> queries = normal(static_cast<size_t>(heads) * head_dim, 4, 0.2f);
            const std::vector<float> got =
                attend(*ops, cache, type, positions, 128, queries, heads, head_dim);
            const std::vector<double> expected = reference(cache, positions, queries, heads, head_dim);
            double worst = 0;
            for (size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - expected[i]));
            CAPTURE(name);
            CAPTURE(head_dim);
            CAPTURE(positions);
            CAPTURE(heads);
            CHECK_LT(worst, type == KvType::kF16 ? 0.01 : 0.05);
          }
        }
      }
    }
  }
}

TEST_CASE("instruction sets with fused multiply-add give one result") {
  const std::vector<Named> all = tables();
  if (all.size() < 3) return;
  const OpsTable &first = *all[1].ops, &second = *all[2].ops;
  for (const KvType type : {KvType::kF16, KvType::kQ8}) {
    const int head_dim = 128, positions = 200;
    const Cache one(first, type, positions, head_dim), other(second, type, positions, head_dim);
    CHECK_EQ(one.memory, other.memory);
    CHECK_EQ(one.floats, other.floats);
    for (const int heads : {1, 4, 6, 7, 8}) {
      const std::vector<float> queries = normal(static_cast<size_t>(heads) * head_dim, 5, 0.2f);
      CAPTURE(heads);
      CHECK_EQ(attend(first, one, type, positions, 128, queries, heads, head_dim),
               attend(second, other, type, positions, 128, queries, heads, head_dim));
    }
  }
  const std::vector<float> x = normal(1536, 6, 3.0f), weight = normal(1536, 7);
  std::vector<float> a(x.size()), b(x.size());
  first.rms_norm(x.data(), weight.data(), 1536, 1e-6f, a.data());
  second.rms_norm(x.data(), weight.data(), 1536, 1e-6f, b.data());
  CHECK_EQ(a, b);
  a = b = x;
  first.swiglu(a.data(), weight.data(), 1530);
  second.swiglu(b.data(), weight.data(), 1530);
  CHECK_EQ(a, b);
  const std::vector<float> angles = normal(128, 8);
  a = b = x;
  first.rope(a.data(), 12, 128, angles.data(), angles.data() + 64, 0.09f);
  second.rope(b.data(), 12, 128, angles.data(), angles.data() + 64, 0.09f);
  CHECK_EQ(a, b);
}

TEST_CASE(
    "hadamard is the signs and the transform of each 128 values, with one result on all instruction sets") {
  const int64_t n = 384;
  const std::vector<float> x = normal(static_cast<size_t>(n), 9, 3.0f), chance = normal(x.size(), 10);
  std::vector<float> signs(x.size());
  std::ranges::transform(chance, signs.begin(), [](float v) { return v < 0.0f ? -1.0f : 1.0f; });
  std::vector<float> first(x.size()), back(x.size());
  baseline_ops().hadamard(x.data(), signs.data(), n, first.data());
  for (int64_t i = 0; i < n; ++i) {
    double sum = 0.0;
    for (int64_t j = i / 128 * 128; j < i / 128 * 128 + 128; ++j) {
      const bool odd = std::popcount(static_cast<uint64_t>(i & j & 127)) % 2 == 1;
      sum += (odd ? -1.0 : 1.0) * signs[static_cast<size_t>(j)] * x[static_cast<size_t>(j)];
    }
    CHECK(first[static_cast<size_t>(i)] == doctest::Approx(sum / std::sqrt(128.0)).epsilon(1e-5));
  }
  for (const auto& [name, ops] : tables()) {
    CAPTURE(name);
    std::vector<float> in_place = x;
    ops->hadamard(in_place.data(), signs.data(), n, in_place.data());
    CHECK_EQ(in_place, first);
    ops->hadamard_back(first.data(), signs.data(), n, back.data());
    for (size_t i = 0; i < x.size(); ++i) CHECK(back[i] == doctest::Approx(x[i]).epsilon(1e-5));
  }
}
