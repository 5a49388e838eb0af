#include "threads/pool.h"

#include <algorithm>
#include <chrono>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bitqwen {
namespace {

// Longer than what happens between two tokens (sampling, decoding text), shorter than anything a
// person would call idle.
constexpr auto kSpinTime = std::chrono::milliseconds(1);
constexpr auto kCrowdedSpinTime = std::chrono::microseconds(5);
constexpr int kSpinsPerLook = 64;  // at the clock
constexpr int kMostThreads = 4096;
constexpr int kSpinsBeforeYield = 2000;  // of a caller that waits for workers without a core

constexpr uint64_t kInside = 0xffff;
constexpr uint64_t kOpen = 1u << 16;
constexpr int kGenerationShift = 17;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, std::span<const ThreadPlace> places)
    : places_(places.begin(), places.end()), cores_(available_cores()) {
  const int wanted = !places.empty() ? static_cast<int>(places.size()) : threads > 0 ? threads : cores_;
  size_ = std::clamp(wanted, 1, kMostThreads);
  if (!places.empty()) places_.resize(static_cast<size_t>(size_));
  crowded_ = size_ > cores_;
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(size_));
  workers_.reserve(static_cast<size_t>(size_ - 1));
  for (int i = 1; i < size_; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(parking_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::take_pieces(int thread) {
  // Its own share, then those of its node's threads, then the others': their memory is far.
  int first = 0, last = size_;
  if (!places_.empty()) {
    const auto near = std::ranges::equal_range(places_, places_[thread].node, {}, &ThreadPlace::node);
    first = static_cast<int>(near.begin() - places_.begin());
    last = static_cast<int>(near.end() - places_.begin());
  }
  const int near = last - first;
  for (int i = 0; i < (own_ ? 1 : size_); ++i) {
    Share& share = shares_[i < near ? first + (thread - first + i) % near : (first + i) % size_];
    for (;;) {
      if (share.next.load(std::memory_order_relaxed) >= share.end) break;
      const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      try {
        (*body_)(begin, std::min(begin + grain_, share.end), thread);
      } catch (...) {
        std::lock_guard lock(failure_mutex_);
        if (!failure_) failure_ = std::current_exception();
        for (int t = 0; t < size_; ++t) shares_[t].next.store(shares_[t].end, std::memory_order_relaxed);
      }
    }
  }
}

// Waits for a job newer than `seen`; its generation. Returns `seen` when the pool is stopping.
uint64_t ThreadPool::await(uint64_t seen) {
  const auto generation = [this] { return gate_.load() >> kGenerationShift; };
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (gate_.load(std::memory_order_relaxed) >> kGenerationShift != seen) return generation();
      relax();
    }
    if (stopping_.load(std::memory_order_relaxed)) return seen;
  } while (std::chrono::steady_clock::now() - start <
           (idle_cores() < 0 ? kCrowdedSpinTime : std::chrono::nanoseconds(kSpinTime)));
  std::unique_lock lock(parking_);
  // Whoever opens the gate looks at parked_ afterwards; whoever parks looks at the gate afterwards.
  parked_.fetch_add(1);
  if (generation() != seen) {
    parked_.fetch_sub(1);
  } else {
    const uint64_t ticket = ++tickets_;
    wake_.wait(lock, [&] { return stopping_.load() || ticket <= called_; });
  }
  return generation();
}

// Cores that no thread of this pool is awake for; below 0: some share a core.
int ThreadPool::idle_cores() const { return cores_ - (size_ - parked_.load(std::memory_order_relaxed)); }

// No more than there are cores for: whoever is awake does the pieces of those who sleep, whereas a thread
// that is woken onto a busy core keeps all others waiting while it holds a piece and does not run.
void ThreadPool::wake(bool all) {
  std::lock_guard lock(parking_);
  const int parked = parked_.load();
  const int count = crowded_ && !all ? std::clamp(idle_cores(), 0, parked) : parked;
  if (count == 0) return;
  // Those that are on their way count as awake, or the next loop would wake others in their stead.
  called_ += static_cast<uint64_t>(count);
  parked_.fetch_sub(count);
  wake_.notify_all();  // to look at their tickets: nobody says whom notify_one() would wake
}

// Goes in if the gate is open; tells which generation's gate it was.
bool ThreadPool::enter(uint64_t& generation) {
  uint64_t gate = gate_.load();
  do {
    generation = gate >> kGenerationShift;
    if (!(gate & kOpen)) return false;
  } while (!gate_.compare_exchange_weak(gate, gate + 1));
  return true;
}

void ThreadPool::work(int thread) {
  std::optional<PinnedThread> pinned;
  if (!places_.empty()) pinned.emplace(places_[thread].cpu);
  uint64_t seen = 0;
  for (;;) {
    if (await(seen) == seen) return;
    if (enter(seen)) {
      take_pieces(thread);
      gate_.fetch_sub(1, std::memory_order_release);
    }
  }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain, Body body) {
  if (count > 0) run(count, std::max<int64_t>(1, grain), body, false);
}

void ThreadPool::first_touch(Part part, int64_t count, int64_t grain, Body body) {
  if (places_.empty()) return parallel_for(count, grain, body);
  grain = std::max<int64_t>(1, grain);
  if (part.of == 0) part.of = count;
  const auto share = [&](int64_t t) {
    return t == size_ ? count : std::clamp<int64_t>(part.of * t / size_ - part.first, 0, count);
  };
  const auto shares = [&](int64_t begin, int64_t end, int thread) {
    for (int64_t at = share(begin); at < share(end); at += grain) {
      body(at, std::min(at + grain, share(end)), thread);
    }
  };
  run(size_, 1, shares, true);
}

void ThreadPool::run(int64_t count, int64_t grain, Body body, bool own) {
  std::lock_guard one_caller(callers_);
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(count, begin + grain), 0);
    return;
  }
  const int64_t pieces = (count + grain - 1) / grain;
  for (int64_t t = 0; t < size_; ++t) {
    shares_[t].next.store(pieces * t / size_ * grain, std::memory_order_relaxed);
    shares_[t].end = std::min(count, pieces * (t + 1) / size_ * grain);
  }
  body_ = &body;
  grain_ = grain;
  own_ = own;
  const uint64_t generation = (gate_.load(std::memory_order_relaxed) >> kGenerationShift) + 1;
  gate_.store(generation << kGenerationShift | kOpen);
  if (parked_.load() > 0) wake(own);
  take_pieces(0);
  const auto done = measuring_ ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
  if (own) {  // the gate stays open until everybody has come
    const auto begun = [](const Share& share) { return share.next.load() >= share.end; };
    while (!std::all_of(shares_.get(), shares_.get() + size_, begun)) std::this_thread::yield();
  }
  gate_.fetch_and(~kOpen);
  for (int spins = 0; gate_.load(std::memory_order_acquire) & kInside; ++spins) {
    // Without a core of its own, a worker needs this one to get on.
    if (crowded_ || spins > kSpinsBeforeYield) std::this_thread::yield();
    relax();
  }
  if (measuring_) {
    waiting_.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - done).count();
    ++waiting_.barriers;
  }
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

}  // namespace bitqwen
