// A Qwen2 model's hyperparameters, from a GGUF file's metadata.
#pragma once

#include <cstdint>

#include "gguf/reader.h"

namespace bitqwen {

enum class RopeScaling { kNone, kLinear, kYarn };

struct Config {
  int64_t vocab_size = 0;  // rows of the embedding, padding included
  int64_t hidden = 0;
  int64_t intermediate = 0;
  int layers = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int64_t context = 0;  // positions the model can use, stretched ones included
  float norm_epsilon = 0;
  double rope_theta = 0;
  RopeScaling rope_scaling = RopeScaling::kNone;
  double rope_factor = 1;
  int64_t rope_original_context = 0;
  double rope_attention_factor = 0;  // 0: the formula of YaRN
  double rope_beta_fast = 32;
  double rope_beta_slow = 1;

  int64_t query_rows() const { return int64_t{heads} * head_dim; }
  int64_t kv_rows() const { return int64_t{kv_heads} * head_dim; }

  /// Throws Error(kUnsupported) for another architecture, Error(kFormat) for a missing or impossible value.
  static Config from_gguf(const gguf::File& file);
};

}  // namespace bitqwen
