// Where the time of steps goes: seconds, calls and bytes of each operation.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

#include "threads/pool.h"

namespace bitqwen {

/// What a step consists of, in its order.
enum class Operation {
  kEmbedding,
  kAttentionNorm,
  kQueryKeyValue,
  kRope,
  kAttention,
  kAttentionQuantize,
  kAttentionOutput,
  kMlpNorm,
  kGateUp,
  kSwiglu,
  kDown,
  kOutputNorm,
  kScreen,
  kHead,
};
constexpr int kOperations = static_cast<int>(Operation::kHead) + 1;

std::string_view operation_name(Operation operation);

struct OperationTime {
  int64_t calls = 0;
  int64_t bytes = 0;     // that the operation reads of weights and cache, or writes into the cache
  double seconds = 0;    // by the clock on the wall
  double waiting = 0;    // of these: the calling thread had no work left and waited for the others
  int64_t barriers = 0;  // times that it did so
};

/// A stop watch that one thread holds. Does nothing until it is enabled.
class Profile {
 public:
  explicit Profile(ThreadPool& pool) : pool_(pool) {}

  /// Forgets everything and begins to measure.
  void start();
  void stop();

  /// A step over `tokens` tokens begins.
  void begin_step(int64_t tokens) {
    if (!enabled_) return;
    ++steps_;
    tokens_ += tokens;
    mark();
  }
  /// All that happened since the last mark was `operation`, which read or wrote `bytes`.
  void add(Operation operation, int64_t bytes) {
    if (enabled_) note(operation, bytes);
  }

  bool enabled() const { return enabled_; }
  int64_t steps() const { return steps_; }
  int64_t tokens() const { return tokens_; }
  const OperationTime& time(Operation operation) const { return times_[static_cast<size_t>(operation)]; }

 private:
  using Clock = std::chrono::steady_clock;

  void mark();
  void note(Operation operation, int64_t bytes);

  ThreadPool& pool_;
  bool enabled_ = false;
  Clock::time_point last_;
  ThreadPool::Waiting waited_;  // at the last mark
  int64_t steps_ = 0;
  int64_t tokens_ = 0;
  std::array<OperationTime, kOperations> times_;
};

}  // namespace bitqwen
