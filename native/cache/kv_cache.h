// The keys and values of several token sequences, in pages that sequences may share.
//
// A page holds kPagePositions positions of all layers. A sequence is a list of pages; a fork shares
// them, and whoever writes into a shared page first takes a copy of it. Memory is reserved for the
// whole capacity at once and becomes real only where it is written.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/ops.h"
#include "weights/packed_buffer.h"

namespace bitqwen {

struct KvShape {
  int layers = 0;
  int kv_heads = 0;
  int head_dim = 0;
  KvType type = KvType::kF16;

  // Of one page, layer and head:
  int64_t keys_bytes() const;
  int64_t values_bytes() const;
  int64_t key_scales_bytes() const;    // 0 for f16
  int64_t value_scales_bytes() const;  // 0 for f16
  int64_t centre_bytes() const;        // what all keys of the page have in common; 0 for f16
  int64_t head_bytes() const;          // all of these
  // Of all layers and heads.
  int64_t page_bytes() const { return int64_t{layers} * kv_heads * head_bytes(); }
};

class KvCache {
 public:
  /// Room for `positions` positions, rounded up to whole pages. Throws Error(kResource).
  KvCache(const KvShape& shape, int64_t positions);

  int create();
  /// A new sequence with the same content; its memory is shared until one of them grows.
  int fork(int sequence);
  void release(int sequence);
  int64_t length(int sequence) const;
  /// Forgets all positions from `length` on.
  void truncate(int sequence, int64_t length);

  /// Makes positions [length, length + count) writable: takes pages, copies a shared last page.
  /// Throws Error(kResource), changing nothing, when there are not enough free pages.
  void reserve(int sequence, int64_t count);
  /// Adds `count` positions, whose keys and values have been written, to the sequence.
  void commit(int sequence, int64_t count);

  /// The bytes of one page of a sequence, all layers: what append_page() of a cache of equal shape takes.
  /// The page must hold something.
  std::span<const uint8_t> page_data(int sequence, int64_t index) const;
  /// Adds a page that holds `positions` positions to a sequence that ends with a full page.
  /// Throws Error(kArgument) if anything does not fit, Error(kResource) as reserve(); nothing changes then.
  void append_page(int sequence, std::span<const uint8_t> data, int64_t positions);

  /// The page of a layer and head that holds position index * kPagePositions of the sequence.
  KvPage page(int sequence, int64_t index, int layer, int kv_head) const;
  /// All pages of a sequence that hold its first `positions` positions, for one layer and head.
  void pages(int sequence, int64_t positions, int layer, int kv_head, KvPage* out) const;

  const KvShape& shape() const { return shape_; }
  int64_t capacity() const { return static_cast<int64_t>(references_.size()) * kPagePositions; }
  int64_t free_positions() const { return static_cast<int64_t>(free_.size()) * kPagePositions; }
  int64_t reserved_bytes() const { return buffer_.bytes(); }

 private:
  struct Sequence {
    bool live = false;
    int64_t length = 0;
    std::vector<int32_t> pages;
  };

  Sequence& get(int sequence);
  const Sequence& get(int sequence) const;
  void drop(int32_t page);

  KvShape shape_;
  PackedBuffer buffer_;  // [pages][layers][kv_heads] keys, values, key scales, value scales, centre
  std::vector<int32_t> references_;  // [pages]
  std::vector<int32_t> free_;        // pages that no sequence holds, the next one last
  std::vector<Sequence> sequences_;
};

}  // namespace bitqwen
