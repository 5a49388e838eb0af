// Rotary position embedding: the angles of every position, with YaRN for long contexts.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "threads/pool.h"

namespace bitqwen {

struct RopeTable {
  int half = 0;                // head_dim / 2
  std::vector<float> cosines;  // [positions][half]
  std::vector<float> sines;    // [positions][half]

  RopeTable() = default;
  RopeTable(const Config& config, int64_t positions, ThreadPool& pool);

  const float* cosine(int64_t position) const { return cosines.data() + position * half; }
  const float* sine(int64_t position) const { return sines.data() + position * half; }
};

}  // namespace bitqwen
