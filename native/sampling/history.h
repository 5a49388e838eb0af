// What a sequence has said so far, as the penalties see it: counts of distinct tokens, kept dense so
// that a step touches only tokens that occur, not the vocabulary.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

namespace bitqwen {

class TokenHistory {
 public:
  struct Entry {
    int32_t token;
    int32_t occurrences;  // in prompt and generated text, within the window
    int32_t generated;    // of those, in generated text
  };

  /// `window`: how many of the latest tokens count; 0 means all.
  explicit TokenHistory(int64_t window) : window_(window) {}

  void add(int32_t token, bool generated);
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  struct Seen {
    int32_t token;
    bool generated;
  };
  void remove(const Seen& seen);

  int64_t window_;
  std::deque<Seen> recent_;  // the window's tokens, oldest first; unused when the window is unbounded
  std::vector<Entry> entries_;
  std::unordered_map<int32_t, size_t> position_;  // token -> its place in entries_
};

}  // namespace bitqwen
