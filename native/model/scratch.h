// Memory that a step works in, taken once.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "model/model.h"

namespace bitqwen {

constexpr int kScreenedRows = 4;                         // rows of logits that one screened pass makes
constexpr int kAttentionRows = 8;                        // queries that share a pass over keys and values
constexpr int64_t kAttentionChunk = 8 * kPagePositions;  // positions of one partial softmax

struct Model::Scratch {
  // Per thread.
  struct Thread {
    std::vector<float> row;                                // [hidden]
    std::vector<float> rotated;                            // [widest activation]
    std::vector<float> scores;                             // [heads per kv head][kPagePositions]
    std::vector<float> partials;                           // [kAttentionRows + 1] partial softmaxes
    std::array<std::vector<int64_t>, kScreenedRows> best;  // rows of the head, a heap of each logits row
  };

  Scratch(const Config& config, const ModelOptions& options, int threads);
  /// Values of the widest input of a product.
  static int64_t widest(const Config& config);
  static int64_t estimate(const Config& config, const ModelOptions& options, int threads, bool screened);

  int64_t qkv_stride, mlp_stride;
  std::vector<float> hidden;    // [batch][hidden]
  std::vector<float> delta;     // [batch][hidden]      what a block adds
  std::vector<float> qkv;       // [batch][qkv_stride]  queries, keys, values
  std::vector<float> attended;  // [batch][query_rows]
  std::vector<float> gate_up;   // [batch][mlp_stride]  gate, up
  std::vector<float> partials;  // of tasks that share one query; grows with the context
  std::vector<Thread> threads;
  std::vector<Row> rows;                                        // [batch]
  std::vector<int> wanted;                                      // rows whose logits are asked for
  std::vector<float> coarse;                                    // [kScreenedRows][vocab_size], if screened
  std::vector<uint8_t> computed;                                // [row blocks of the head]
  std::unique_ptr<ActivationBatch> screened;                    // [kScreenedRows], if screened
  std::array<std::unique_ptr<ActivationBatch>, 8> activations;  // groups 0, 32, 64, 128; then rotated
};

}  // namespace bitqwen
