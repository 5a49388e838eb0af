// A persistent pool of worker threads for loops of microseconds: workers spin for a while before
// they park, because waking a parked thread costs more than a small matrix product.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "system/limits.h"
#include "threads/function_ref.h"

namespace bitqwen {

class ThreadPool {
 public:
  /// Work on pieces [begin, end), on thread `thread` (0 is the caller's, the last is size() - 1).
  using Body = FunctionRef<void(int64_t begin, int64_t end, int thread)>;

  /// `threads` counts the caller too; 0 means available_cores().
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body over [0, count) in pieces of at most `grain`, each piece once, and returns when all are
  /// done. A thread begins with its own contiguous share, the same one in every call with this count
  /// and grain, and then takes pieces from the others'. Nothing is allocated.
  /// The first exception thrown by a body is rethrown here, after all threads have stopped; pieces
  /// that were not begun by then are left out.
  /// One caller at a time: a second one waits. A body must not call back into the pool.
  void parallel_for(int64_t count, int64_t grain, Body body);

  /// What callers spent at the ends of their loops, with no piece left, until the workers were done.
  struct Waiting {
    double seconds = 0;
    int64_t barriers = 0;
  };
  /// Begins or ends measuring it: two looks at the clock for each loop.
  void measure_waiting(bool on) { measuring_ = on; }
  Waiting waiting() const { return waiting_; }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void work(int thread);
  bool enter(uint64_t& generation);
  uint64_t await(uint64_t seen);
  void take_pieces(int thread);

  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;  // [size()]
  bool crowded_ = false;             // more threads than cores

  // The job: written by the caller while the gate is shut and nobody is inside.
  const Body* body_ = nullptr;
  int64_t grain_ = 1;
  bool measuring_ = false;
  Waiting waiting_;
  std::mutex failure_mutex_;
  std::exception_ptr failure_;

  // Generation of the job, whether it is open to workers, and how many are inside. A worker that comes
  // when all pieces are taken finds it shut and goes on waiting: nobody waits for a sleeper.
  alignas(64) std::atomic<uint64_t> gate_{0};
  alignas(64) std::atomic<int> parked_{0};
  std::atomic<bool> stopping_{false};
  std::mutex callers_;  // one job at a time
  std::mutex parking_;
  std::condition_variable wake_;
};

}  // namespace bitqwen
