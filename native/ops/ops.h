// What a transformer does besides matrix products, one table for each instruction set.
//
// Each function computes an output in one order of operations, whatever thread, batch or chunk it is
// called from: results are the same to the last bit on one instruction set.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace bitqwen {

constexpr int kPagePositions = 64;  // positions of one page of the KV cache

enum class KvType { kF16, kQ8, kQ4 };

/// Keys and values of one page, layer and key/value head.
/// f16: keys [head_dim][kPagePositions], values [kPagePositions][head_dim]
/// q8:  the same as int8, keys less the page's centre; then key scales and value scales, each
///      [kv_scales(head_dim)][kPagePositions], and the centre, float32.
/// q4:  keys as in q8. Values in groups of 32, 16 bytes and a float16 scale each: byte i of a group holds
///      value i (low half) and value i + 16 (high half), as (code + 8) of scale * code, code in [-8, 7].
///      Where head_dim is no multiple of 32, the last group's high halves are unused.
/// Keys lie transposed so that a vector holds many positions: no horizontal additions.
struct KvPage {
  uint8_t* keys;
  uint8_t* values;
  float* key_scales;      // q8, q4
  uint8_t* value_scales;  // float32 (q8) or float16 [kv_value_groups(head_dim)][kPagePositions] (q4)
  float* key_centre;      // [head_dim], q8 and q4
};

/// Softmax in progress over some positions, for the query heads of one key/value head.
struct PartialAttention {
  float* maximum;  // [heads]
  float* weight;   // [heads]       sum of e^(score - maximum)
  float* values;   // [heads][head_dim], not yet divided by weight
};

struct OpsTable {
  /// out[i] = x[i] / rms(x) * weight[i]
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float epsilon, float* out);
  /// x[i] += y[i]
  void (*add)(float* x, const float* y, int64_t n);
  /// gate[i] = silu(gate[i]) * up[i]
  void (*swiglu)(float* gate, const float* up, int64_t n);
  /// Rotates the halves of each head (NeoX form), times `scale`. cosines, sines: [head_dim / 2]
  void (*rope)(float* x, int heads, int head_dim, const float* cosines, const float* sines, float scale);
  /// Blocks of 128 values times signs (1.0 or -1.0), Hadamard-transformed and divided by sqrt(128):
  /// gguf/rotation.h. n: a multiple of 128. The same bits on every instruction set. `out` may be x.
  void (*hadamard)(const float* x, const float* signs, int64_t n, float* out);
  /// The way back: the transform first, then the signs.
  void (*hadamard_back)(const float* x, const float* signs, int64_t n, float* out);
  /// Writes one position's key and value (each [head_dim]) into a page. A q8 or q4 page keeps the key less
  /// `centre` [head_dim], which is the same for all positions of a page and stored with its first.
  void (*store_kv)(const KvPage& page, KvType type, int position, const float* key, const float* value,
                   const float* centre, int head_dim);
  /// Attention of `heads` scaled queries over the first `positions` positions of `pages`. queries:
  /// [heads][head_dim]; scratch: [heads * kPagePositions].
  void (*attend)(const KvPage* pages, KvType type, int64_t positions, const float* queries, int heads,
                 int head_dim, float* scratch, const PartialAttention& out);
  /// into := into and `from` together.
  void (*merge)(const PartialAttention& into, const PartialAttention& from, int heads, int head_dim);
  /// out[h] = values[h] / weight[h]. out: [heads][head_dim]
  void (*finish)(const PartialAttention& partial, int heads, int head_dim, float* out);
};

const OpsTable& baseline_ops();
const OpsTable& avx2_ops();
const OpsTable& avx512_ops();
/// The table that goes with current_isa().
const OpsTable& current_ops();

/// Scales that a q8 page keeps for each position's key (and value), a q4 page for its key: one for every 64.
inline int kv_scales(int head_dim) { return head_dim % 64 == 0 ? head_dim / 64 : 1; }

constexpr int kValueGroup = 32;  // 4-bit values that share a scale

/// Groups that a q4 page keeps for each position's value.
inline int kv_value_groups(int head_dim) { return (head_dim + kValueGroup - 1) / kValueGroup; }

}  // namespace bitqwen
