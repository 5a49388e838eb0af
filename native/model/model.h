// A Qwen2 transformer, loaded and ready: weights packed for this CPU, a KV cache, threads.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "gguf/reader.h"
#include "kernels/multiply.h"
#include "kernels/plan.h"
#include "model/config.h"
#include "model/profile.h"
#include "model/rope.h"
#include "model/screened_head.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

namespace bitqwen {

struct ModelOptions {
  int threads = 0;              // 0: one per core
  int64_t context = 4096;       // positions that a sequence may have
  int64_t cache_positions = 0;  // positions of all sequences together; 0: those of one
  KvType kv_type = KvType::kF16;
  int batch = 512;  // tokens computed at once
  KernelPlan plan;  // what the tuner found; may be empty
  ScreenedHead::Use screened_head = ScreenedHead::Use::kNever;
  std::vector<ThreadPlace> places = {};  // one for each thread; none: wherever the system runs them
};

struct MemoryReport {
  int64_t weights = 0;  // packed
  int64_t cache = 0;    // reserved; becomes real as it is written
  int64_t scratch = 0;
};

enum class LogitRows { kNone, kLast, kAll };

/// What a step writes for the rows asked for.
enum class Output {
  kLogits,  // [vocab_size]
  kHidden,  // [hidden]: what the output matrix would be multiplied with, after the last norm
};

/// Which logits of a row the caller will look at: the `top` highest, or those at most `margin` below the
/// highest, or, with both, those that are both. Others may be -infinity instead of what they are.
struct Screen {
  int64_t top = 0;       // 0: as many as there are
  float margin = -1.0f;  // below 0: however low
  int64_t rows = 0;      // rows from here on are padding; 0: none are
  std::span<const int32_t> lowered =
      {};  // rows that the caller will lower before it looks: none counts as high
  /// Beyond these, more rows than not would be computed, and the screen beside them.
  static constexpr int64_t kMostTop = 128;
  static constexpr float kMostMargin = 8.0f;
  bool wanted() const { return top > 0 ? top <= kMostTop : margin >= 0.0f && margin <= kMostMargin; }
  /// Several rows of one step add up what they need: together at most kMostTogether, or the whole head is
  /// quicker, because its rows are then read once for all.
  static constexpr int64_t kMostTogether = 20;
  int64_t share() const { return top > 0 ? top : kMostTogether; }
};

/// Tokens to append to one sequence.
struct Request {
  int sequence = 0;
  std::span<const int32_t> tokens;
  LogitRows logits = LogitRows::kLast;
  Screen screen = {};  // without effect unless the model has a ScreenedHead
};

class Model {
 public:
  /// Reads, checks and packs the weights; the file may be closed afterwards.
  Model(const gguf::File& file, const ModelOptions& options);
  ~Model();

  struct Scratch;  // model/ only

  const Config& config() const { return config_; }
  const ModelOptions& options() const { return options_; }
  MemoryReport memory() const;
  /// What memory() will say of a model with these settings whose matrices take `weights` bytes: with a screen
  /// if that is kAlways.
  static MemoryReport estimate(const Config& config, const ModelOptions& options, int threads,
                               int64_t weights);
  /// Bytes of packed weights that computing one token reads: all but an embedding that is no head. With
  /// `screened`, of a greedy token: the screen, if there is one, for the head (and about 2 % of it).
  int64_t decode_bytes(bool screened = false) const;
  int threads() const { return pool_.size(); }
  /// Memory nodes that threads and weights are spread over; 0: they are not placed.
  int numa_nodes() const { return pool_.nodes(); }
  bool screened() const { return screen_.has_value(); }
  KvCache& cache() { return *cache_; }
  /// Measures every forward() between its start() and stop().
  Profile& profile() { return profile_; }

  /// Appends each request's tokens to its sequence; out: [rows asked for, in order][width(output)].
  /// `should_stop` is asked between layers; when it says yes, or on any error, the sequences stay as
  /// they were. Throws Error(kContext), Error(kResource), Error(kInterrupted), Error(kArgument).
  void forward(std::span<const Request> requests, Output output, float* out,
               const std::function<bool()>& should_stop);

  /// Rows that forward() will write.
  static int64_t logit_rows(std::span<const Request> requests);
  int64_t width(Output output) const {
    return output == Output::kLogits ? config_.vocab_size : config_.hidden;
  }

 private:
  struct Layer {
    std::vector<float> attention_norm;  // [hidden]
    std::vector<float> mlp_norm;        // [hidden]
    PackedMatrix query, key, value;     // [query_rows or kv_rows, hidden]
    std::vector<float> qkv_bias;        // [query_rows + 2 * kv_rows]
    PackedMatrix attention_output;      // [hidden, query_rows]
    PackedMatrix gate, up;              // [intermediate, hidden]
    PackedMatrix down;                  // [hidden, intermediate]
  };
  static std::array<const PackedMatrix*, 7> matrices(const Layer& layer) {
    return {&layer.query, &layer.key, &layer.value, &layer.attention_output,
            &layer.gate,  &layer.up,  &layer.down};
  }
  // One token of a step.
  struct Row {
    int sequence = 0;
    int64_t position = 0;
    int32_t token = 0;
    int64_t logits = -1;  // row of the caller's array, or none
    Screen screen = {};
  };
  struct Product {
    const PackedMatrix* weights;
    const ActivationBatch* activations;
    float* out;
    int64_t stride;  // of out, from token to token
  };

  void load(const gguf::File& file);
  void apply_plan();
  void make_screen();
  void check_requests(std::span<const Request> requests) const;
  int64_t cache_bytes(std::span<const Row> rows) const;
  void step(std::span<const Row> rows, Output output, float* out, const std::function<bool()>& should_stop);
  void attention(std::span<const Row> rows, int layer);
  void head(std::span<const Row> rows, Output output, float* out);
  void screened_logits(std::span<const Row> rows, float* out);
  /// What the output matrix is multiplied with. out: [hidden]
  void output_state(int row, float* out);
  /// Quantises `rows` vectors of `k` values for every matrix given; values(row, thread) makes one.
  void prepare(int rows, int64_t k, std::initializer_list<const PackedMatrix*> matrices,
               const std::function<const float*(int row, int thread)>& values);
  void multiply(std::initializer_list<Product> products, int rows);
  /// The inputs that such a matrix is multiplied with: those of its activation group, rotated or not.
  ActivationBatch& activations(const PackedMatrix& matrix);

  Config config_;
  ModelOptions options_;
  ThreadPool pool_;
  Profile profile_{pool_};
  std::optional<PackedMatrix> embedding_;  // [vocab_size, hidden]
  std::optional<PackedMatrix> output_;     // [vocab_size, hidden]; absent when tied
  std::optional<ScreenedHead> screen_;     // of output_ or embedding_
  std::vector<float> output_norm_;         // [hidden]
  std::vector<Layer> layers_;
  std::vector<float> rotation_signs_;  // [widest rotated matrix] 1 or -1
  RopeTable rope_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace bitqwen
