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
constexpr int kSpinsPerLook = 64;        // at the clock
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

ThreadPool::ThreadPool(int threads) {
  const int cores = available_cores();
  const int total = std::clamp(threads > 0 ? threads : cores, 1, 4096);
  crowded_ = total > cores;
  shares_ = std::make_unique<Share[]>(static_cast<size_t>(total));
  workers_.reserve(static_cast<size_t>(total - 1));
  for (int i = 1; i < total; ++i) workers_.emplace_back([this, i] { work(i); });
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
  const int total = size();
  for (int i = 0; i < total; ++i) {
    Share& share = shares_[(thread + i) % total];
    for (;;) {
      if (share.next.load(std::memory_order_relaxed) >= share.end) break;
      const int64_t begin = share.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= share.end) break;
      try {
        (*body_)(begin, std::min(begin + grain_, share.end), thread);
      } catch (...) {
        std::lock_guard lock(failure_mutex_);
        if (!failure_) failure_ = std::current_exception();
        for (int t = 0; t < total; ++t) shares_[t].next.store(shares_[t].end, std::memory_order_relaxed);
      }
    }
  }
}

// Waits for a job newer than `seen`; its generation. Returns `seen` when the pool is stopping.
uint64_t ThreadPool::await(uint64_t seen) {
  const auto generation = [this] { return gate_.load() >> kGenerationShift; };
  const auto patience = crowded_ ? kCrowdedSpinTime : std::chrono::nanoseconds(kSpinTime);
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      if (gate_.load(std::memory_order_relaxed) >> kGenerationShift != seen) return generation();
      relax();
    }
    if (stopping_.load(std::memory_order_relaxed)) return seen;
  } while (std::chrono::steady_clock::now() - start < patience);
  std::unique_lock lock(parking_);
  // Whoever opens the gate looks at parked_ afterwards; whoever parks looks at the gate afterwards.
  parked_.fetch_add(1);
  wake_.wait(lock, [&] { return stopping_.load() || generation() != seen; });
  parked_.fetch_sub(1);
  return generation();
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
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  std::lock_guard one_caller(callers_);
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(count, begin + grain), 0);
    return;
  }
  const int64_t pieces = (count + grain - 1) / grain, total = size();
  for (int64_t t = 0; t < total; ++t) {
    shares_[t].next.store(pieces * t / total * grain, std::memory_order_relaxed);
    shares_[t].end = std::min(count, pieces * (t + 1) / total * grain);
  }
  body_ = &body;
  grain_ = grain;
  const uint64_t generation = (gate_.load(std::memory_order_relaxed) >> kGenerationShift) + 1;
  gate_.store(generation << kGenerationShift | kOpen);
  if (parked_.load() > 0) {
    std::lock_guard lock(parking_);
    wake_.notify_all();
  }
  take_pieces(0);
  const auto done = measuring_ ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
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
