// Attention over the KV cache's pages, in each number format and with each instruction set, against
// sums in double over what the pages' documented layout holds.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "cache/kv_cache.h"
#include "half.h"
#include "kernels/isa.h"
#include "ops/ops.h"

using namespace bitqwen;

namespace {

struct Case {
  int head_dim, heads, positions;
};

constexpr Case kCases[] = {{16, 1, 1}, {32, 2, 64}, {48, 3, 65}, {64, 7, 130}, {128, 6, 200}, {128, 9, 64}};
constexpr KvType kTypes[] = {KvType::kF16, KvType::kQ8, KvType::kQ4};

std::vector<float> normal(std::mt19937& random, size_t n, float scale) {
  std::normal_distribution<float> draw(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = draw(random);
  return out;
}

// Key and value of a position as the page holds them: [head_dim] each.
void read(const KvPage& page, KvType type, int p, int head_dim, std::vector<float>& key,
          std::vector<float>& value) {
  const int blocks = kv_scales(head_dim), size = head_dim / blocks, groups = kv_value_groups(head_dim);
  for (int d = 0; d < head_dim; ++d) {
    const int64_t k = int64_t{d} * kPagePositions + p, v = int64_t{p} * head_dim + d;
    if (type == KvType::kF16) {
      key[d] = half_to_float(reinterpret_cast<const uint16_t*>(page.keys)[k]);
      value[d] = half_to_float(reinterpret_cast<const uint16_t*>(page.values)[v]);
      continue;
    }
    key[d] = page.key_centre[d] +
             reinterpret_cast<const int8_t*>(page.keys)[k] * page.key_scales[d / size * kPagePositions + p];
    if (type == KvType::kQ8) {
      value[d] = reinterpret_cast<const int8_t*>(page.values)[v] *
                 reinterpret_cast<const float*>(page.value_scales)[d / size * kPagePositions + p];
    } else {
      const int group = p * groups + d / 32, place = d % 32;
      const int byte = page.values[group * 16 + place % 16];
      const int code = (place < 16 ? byte & 15 : byte >> 4) - 8;
      value[d] =
          static_cast<float>(code) *
          half_to_float(reinterpret_cast<const uint16_t*>(page.value_scales)[d / 32 * kPagePositions + p]);
    }
  }
}

// Of one block that shares a scale.
float largest(const std::vector<float>& x, int begin, int end) {
  float most = 0;
  for (int i = begin; i < end; ++i) most = std::max(most, std::fabs(x[i]));
  return most;
}

}  // namespace

TEST_CASE("attention equals sums over what the pages hold, and they hold what was stored") {
  const Isa before = current_isa();
  for (const Isa isa : usable_isas()) {
    set_isa(isa);
    for (const KvType type : kTypes) {
      for (const auto& [head_dim, heads, positions] : kCases) {
        CAPTURE(isa_name(isa));
        CAPTURE(static_cast<int>(type));
        CAPTURE(head_dim);
        std::mt19937 random(7);
        KvCache cache({2, 2, head_dim, type}, positions);
        const int sequence = cache.create();
        cache.reserve(sequence, positions);
        const std::vector<float> centre = normal(random, static_cast<size_t>(head_dim), 30.0f);
        std::vector<std::vector<float>> keys, values;
        std::vector<float> key(head_dim), value(head_dim);
        for (int p = 0; p < positions; ++p) {
          key = normal(random, static_cast<size_t>(head_dim), 1.0f);
          // The bias that all keys share is what the quantised formats keep apart.
          for (int d = 0; d < head_dim; ++d) key[d] += centre[d];
          value = normal(random, static_cast<size_t>(head_dim), 2.0f);
          // The neighbours are written too: nothing may run over into this one.
          for (int layer = 0; layer < 2; ++layer) {
            for (int head = 0; head < 2; ++head) {
              const bool ours = layer == 1 && head == 0;
              const std::vector<float> other(static_cast<size_t>(head_dim), 1e4f);
              current_ops().store_kv(cache.page(sequence, p / kPagePositions, layer, head), type,
                                     p % kPagePositions, ours ? key.data() : other.data(),
                                     ours ? value.data() : other.data(), centre.data(), head_dim);
            }
          }
          keys.push_back(key);
          values.push_back(value);
        }
        cache.commit(sequence, positions);
        std::vector<KvPage> pages((positions + kPagePositions - 1) / kPagePositions);
        cache.pages(sequence, positions, 1, 0, pages.data());

        const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
        const std::vector<float> queries = normal(random, static_cast<size_t>(heads) * head_dim, scale);
        std::vector<float> scratch(heads * kPagePositions), maximum(heads), weight(heads),
            sums(heads * head_dim), out(heads * head_dim);
        const PartialAttention partial{maximum.data(), weight.data(), sums.data()};
        current_ops().attend(pages.data(), type, positions, queries.data(), heads, head_dim, scratch.data(),
                             partial);
        current_ops().finish(partial, heads, head_dim, out.data());

        std::vector<double> expected(static_cast<size_t>(heads) * head_dim, 0.0), total(heads, 0.0);
        std::vector<std::vector<double>> scores(heads, std::vector<double>(positions));
        for (int p = 0; p < positions; ++p) {
          read(pages[p / kPagePositions], type, p % kPagePositions, head_dim, key, value);
          const int block = head_dim / kv_scales(head_dim);
          for (int d = 0; d < head_dim; ++d) {
            const int from = d / block * block, group = d / kValueGroup * kValueGroup;
            if (type == KvType::kF16) {
              CHECK(key[d] == half_to_float(float_to_half(keys[p][d])));
              CHECK(value[d] == half_to_float(float_to_half(values[p][d])));
              continue;
            }
            std::vector<float> less(keys[p]);
            for (int i = 0; i < head_dim; ++i) less[i] -= centre[i];
            CHECK(std::fabs(key[d] - keys[p][d]) <=
                  largest(less, from, from + block) / 127.0f * 0.51f + 1e-5f);
            // Four bits: half a step, or a whole one where 8 would be the code on the shorter side.
            const float most =
                type == KvType::kQ8
                    ? largest(values[p], from, from + block) / 127.0f * 0.51f
                    : largest(values[p], group, std::min(group + kValueGroup, head_dim)) / 8.0f;
            CHECK(std::fabs(value[d] - values[p][d]) <= most * 1.001f);
          }
          for (int h = 0; h < heads; ++h) {
            for (int d = 0; d < head_dim; ++d) scores[h][p] += double{queries[h * head_dim + d]} * key[d];
          }
        }
        for (int h = 0; h < heads; ++h) {
          const double highest = *std::max_element(scores[h].begin(), scores[h].end());
          for (int p = 0; p < positions; ++p) {
            read(pages[p / kPagePositions], type, p % kPagePositions, head_dim, key, value);
            const double w = std::exp(scores[h][p] - highest);
            total[h] += w;
            for (int d = 0; d < head_dim; ++d) expected[h * head_dim + d] += w * value[d];
          }
          for (int d = 0; d < head_dim; ++d) {
            CHECK(out[h * head_dim + d] ==
                  doctest::Approx(expected[h * head_dim + d] / total[h]).epsilon(2e-3));
          }
        }
      }
    }
  }
  set_isa(before);
}

TEST_CASE("a page's size is what its format says") {
  // Of one position and head of 128: 2 x 256; 2 x (128 + 8); 128 + 8 + 64 + 8; and the centre of a page.
  const auto bytes = [](KvType type, int head_dim) { return KvShape{1, 1, head_dim, type}.page_bytes(); };
  CHECK(bytes(KvType::kF16, 128) == 64 * 512);
  CHECK(bytes(KvType::kQ8, 128) == 64 * 272 + 512);
  CHECK(bytes(KvType::kQ4, 128) == 64 * 208 + 512);
  CHECK(bytes(KvType::kQ4, 48) == 64 * (48 + 4 + 2 * (16 + 2)) + 192);
}
