#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "errors.h"

namespace bitqwen {

int64_t KvShape::keys_bytes() const {
  return int64_t{kPagePositions} * head_dim * (type == KvType::kF16 ? 2 : 1);
}

int64_t KvShape::values_bytes() const {
  if (type == KvType::kQ4) return int64_t{kPagePositions} * kv_value_groups(head_dim) * (kValueGroup / 2);
  return keys_bytes();
}

int64_t KvShape::key_scales_bytes() const {
  return type == KvType::kF16 ? 0 : int64_t{kPagePositions} * kv_scales(head_dim) * 4;
}

int64_t KvShape::value_scales_bytes() const {
  if (type == KvType::kQ4) return int64_t{kPagePositions} * kv_value_groups(head_dim) * 2;
  return key_scales_bytes();
}

int64_t KvShape::centre_bytes() const { return type == KvType::kF16 ? 0 : int64_t{head_dim} * 4; }

int64_t KvShape::head_bytes() const {
  return keys_bytes() + values_bytes() + key_scales_bytes() + value_scales_bytes() + centre_bytes();
}

KvCache::KvCache(const KvShape& shape, int64_t positions)
    : shape_(shape),
      buffer_((positions + kPagePositions - 1) / kPagePositions * shape.page_bytes()),
      references_(static_cast<size_t>((positions + kPagePositions - 1) / kPagePositions), 0) {
  free_.resize(references_.size());
  for (size_t i = 0; i < free_.size(); ++i) free_[i] = static_cast<int32_t>(free_.size() - 1 - i);
}

KvCache::Sequence& KvCache::get(int sequence) {
  return const_cast<Sequence&>(static_cast<const KvCache*>(this)->get(sequence));
}

const KvCache::Sequence& KvCache::get(int sequence) const {
  if (sequence < 0 || sequence >= static_cast<int>(sequences_.size()) || !sequences_[sequence].live) {
    throw Error(ErrorKind::kArgument, "there is no sequence " + std::to_string(sequence) + ": it was closed");
  }
  return sequences_[sequence];
}

int KvCache::create() {
  const auto unused = std::ranges::find(sequences_, false, &Sequence::live);
  const int id = static_cast<int>(unused - sequences_.begin());
  if (unused == sequences_.end()) sequences_.emplace_back();
  sequences_[id].live = true;
  return id;
}

int KvCache::fork(int sequence) {
  get(sequence);
  const int id = create();
  const Sequence& from = sequences_[sequence];
  Sequence& to = sequences_[id];
  to.length = from.length;
  to.pages.assign(from.pages.begin(),
                  from.pages.begin() + (from.length + kPagePositions - 1) / kPagePositions);
  for (const int32_t page : to.pages) ++references_[page];
  return id;
}

void KvCache::drop(int32_t page) {
  if (--references_[page] == 0) free_.push_back(page);
}

void KvCache::release(int sequence) {
  Sequence& s = get(sequence);
  for (const int32_t page : s.pages) drop(page);
  s = Sequence{};
}

int64_t KvCache::length(int sequence) const { return get(sequence).length; }

void KvCache::truncate(int sequence, int64_t length) {
  Sequence& s = get(sequence);
  if (length < 0 || length > s.length) {
    throw Error(ErrorKind::kArgument, "cannot truncate a sequence of " + std::to_string(s.length) +
                                          " positions to " + std::to_string(length));
  }
  s.length = length;
  const auto keep = static_cast<size_t>((length + kPagePositions - 1) / kPagePositions);
  while (s.pages.size() > keep) {
    drop(s.pages.back());
    s.pages.pop_back();
  }
}

void KvCache::reserve(int sequence, int64_t count) {
  Sequence& s = get(sequence);
  const auto needed = static_cast<size_t>((s.length + count + kPagePositions - 1) / kPagePositions);
  const bool partial = s.length % kPagePositions != 0;
  const auto last = static_cast<size_t>(s.length / kPagePositions);
  const bool copy = partial && count > 0 && references_[s.pages[last]] > 1;
  const size_t fresh = (needed > s.pages.size() ? needed - s.pages.size() : 0) + (copy ? 1 : 0);
  if (fresh > free_.size()) {
    throw Error(ErrorKind::kResource,
                "the KV cache is full: " + std::to_string(count) + " more positions were asked for, " +
                    std::to_string(free_positions()) + " of " + std::to_string(capacity()) + " are free",
                "Close or truncate a session, or open the model with a larger context.");
  }
  const auto take = [this] {
    const int32_t page = free_.back();
    free_.pop_back();
    references_[page] = 1;
    return page;
  };
  if (copy) {
    const int32_t page = take();
    const int64_t bytes = shape_.page_bytes();
    std::memcpy(buffer_.data() + page * bytes, buffer_.data() + s.pages[last] * bytes,
                static_cast<size_t>(bytes));
    drop(s.pages[last]);
    s.pages[last] = page;
  }
  while (s.pages.size() < needed) s.pages.push_back(take());
}

void KvCache::commit(int sequence, int64_t count) {
  Sequence& s = get(sequence);
  if (s.length + count > static_cast<int64_t>(s.pages.size()) * kPagePositions) {
    throw Error(ErrorKind::kArgument, "positions were committed that had not been reserved");
  }
  s.length += count;
}

std::span<const uint8_t> KvCache::page_data(int sequence, int64_t index) const {
  const Sequence& s = get(sequence);
  if (index < 0 || index * kPagePositions >= s.length) {
    throw Error(ErrorKind::kArgument, "a sequence of " + std::to_string(s.length) +
                                          " positions has no page " + std::to_string(index));
  }
  const int64_t bytes = shape_.page_bytes();
  return {buffer_.data() + s.pages[static_cast<size_t>(index)] * bytes, static_cast<size_t>(bytes)};
}

void KvCache::append_page(int sequence, std::span<const uint8_t> data, int64_t positions) {
  const int64_t length = get(sequence).length, bytes = shape_.page_bytes();
  if (static_cast<int64_t>(data.size()) != bytes || positions < 1 || positions > kPagePositions ||
      length % kPagePositions != 0) {
    throw Error(ErrorKind::kArgument, "a page of " + std::to_string(data.size()) + " bytes with " +
                                          std::to_string(positions) + " positions cannot follow " +
                                          std::to_string(length) + " positions; pages have " +
                                          std::to_string(bytes) + " bytes and up to " +
                                          std::to_string(kPagePositions) + " positions");
  }
  reserve(sequence, positions);
  std::ranges::copy(data, buffer_.data() + sequences_[sequence].pages.back() * bytes);
  commit(sequence, positions);
}

KvPage KvCache::page(int sequence, int64_t index, int layer, int kv_head) const {
  uint8_t* keys = buffer_.data() +
                  sequences_[sequence].pages[static_cast<size_t>(index)] * shape_.page_bytes() +
                  (int64_t{layer} * shape_.kv_heads + kv_head) * shape_.head_bytes();
  uint8_t* values = keys + shape_.keys_bytes();
  uint8_t* key_scales = values + shape_.values_bytes();
  uint8_t* value_scales = key_scales + shape_.key_scales_bytes();
  uint8_t* centre = value_scales + shape_.value_scales_bytes();
  return {keys, values, reinterpret_cast<float*>(key_scales), value_scales, reinterpret_cast<float*>(centre)};
}

void KvCache::pages(int sequence, int64_t positions, int layer, int kv_head, KvPage* out) const {
  for (int64_t i = 0; i * kPagePositions < positions; ++i) out[i] = page(sequence, i, layer, kv_head);
}

}  // namespace bitqwen
