#include "model/profile.h"

namespace bitqwen {

std::string_view operation_name(Operation operation) {
  switch (operation) {
    case Operation::kEmbedding: return "embedding";
    case Operation::kAttentionNorm: return "attention_norm";
    case Operation::kQueryKeyValue: return "query_key_value";
    case Operation::kRope: return "rope";
    case Operation::kAttention: return "attention";
    case Operation::kAttentionQuantize: return "attention_quantize";
    case Operation::kAttentionOutput: return "attention_output";
    case Operation::kMlpNorm: return "mlp_norm";
    case Operation::kGateUp: return "gate_up";
    case Operation::kSwiglu: return "swiglu";
    case Operation::kDown: return "down";
    case Operation::kOutputNorm: return "output_norm";
    case Operation::kScreen: return "screen";
    case Operation::kHead: return "head";
  }
  return "";
}

void Profile::start() {
  times_ = {};
  steps_ = tokens_ = 0;
  enabled_ = true;
  pool_.measure_waiting(true);
}

void Profile::stop() {
  enabled_ = false;
  pool_.measure_waiting(false);
}

void Profile::mark() {
  waited_ = pool_.waiting();
  last_ = Clock::now();
}

void Profile::note(Operation operation, int64_t bytes) {
  const Clock::time_point now = Clock::now();
  const ThreadPool::Waiting waited = pool_.waiting();
  OperationTime& time = times_[static_cast<size_t>(operation)];
  ++time.calls;
  time.bytes += bytes;
  time.seconds += std::chrono::duration<double>(now - last_).count();
  time.waiting += waited.seconds - waited_.seconds;
  time.barriers += waited.barriers - waited_.barriers;
  waited_ = waited;
  last_ = now;
}

}  // namespace bitqwen
