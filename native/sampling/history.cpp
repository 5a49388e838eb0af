#include "sampling/history.h"

namespace bitqwen {

void TokenHistory::add(int32_t token, bool generated) {
  const auto [found, inserted] = position_.try_emplace(token, entries_.size());
  if (inserted) entries_.push_back({token, 0, 0});
  Entry& entry = entries_[found->second];
  ++entry.occurrences;
  if (generated) ++entry.generated;
  if (window_ == 0) return;
  recent_.push_back({token, generated});
  if (static_cast<int64_t>(recent_.size()) > window_) {
    remove(recent_.front());
    recent_.pop_front();
  }
}

void TokenHistory::remove(const Seen& seen) {
  const size_t place = position_.at(seen.token);
  Entry& entry = entries_[place];
  if (seen.generated) --entry.generated;
  if (--entry.occurrences > 0) return;
  position_.erase(seen.token);
  if (place + 1 != entries_.size()) {
    entries_[place] = entries_.back();
    position_[entries_[place].token] = place;
  }
  entries_.pop_back();
}

}  // namespace bitqwen
