// A persistent pool of worker threads for loops of microseconds: workers spin for a while before
// they park, because waking a parked thread costs more than a small matrix product.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace bitqwen {

class ThreadPool {
 public:
  /// `threads` counts the caller too; 0 means one per core of this process's affinity mask.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end, thread) over [0, count) in pieces of at most `grain`, each piece once, on
  /// any thread (0 is the caller's), and returns when all are done. Pieces are claimed dynamically.
  /// The first exception thrown by a body is rethrown here, after all threads have stopped.
  /// One caller at a time: a second one waits. A body must not call back into the pool.
  void parallel_for(int64_t count, int64_t grain,
                    const std::function<void(int64_t begin, int64_t end, int thread)>& body);

 private:
  struct Job;
  void work(int thread);
  void run(Job& job, int thread);

  std::vector<std::thread> workers_;
  std::mutex callers_;  // one job at a time
  std::mutex mutex_;    // guards parking
  std::condition_variable wake_;
  std::atomic<Job*> job_{nullptr};
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> stopping_{false};
};

/// Cores that this process may run on (its affinity mask), at least 1.
int available_cores();

}  // namespace bitqwen
