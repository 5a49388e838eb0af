// A persistent pool of worker threads for loops of microseconds: workers spin for a while before
// they park, because waking a parked thread costs more than a small matrix product.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "system/limits.h"
#include "system/numa.h"
#include "threads/function_ref.h"

namespace bitqwen {

class ThreadPool {
 public:
  /// Work on pieces [begin, end), on thread `thread` (0 is the caller's, the last is size() - 1).
  using Body = FunctionRef<void(int64_t begin, int64_t end, int thread)>;

  /// `threads` counts the caller too; 0 means available_cores(). With `places`, in the order of their nodes,
  /// there are as many threads instead and each stays at its place, the caller's while it holds a Caller;
  /// memory that first_touch() wrote is then read by threads of its node as long as they have work.
  explicit ThreadPool(int threads = 0, std::span<const ThreadPlace> places = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  /// Nodes that its threads are placed on; 0: they run where the system puts them.
  int nodes() const { return places_.empty() ? 0 : places_.back().node + 1; }

  /// Whoever calls loops of a pool with places holds one of these for as long as they take together: moving
  /// to a CPU and back would cost more than a loop.
  class Caller {
   public:
    explicit Caller(const ThreadPool& pool) {
      if (!pool.places_.empty()) pinned_.emplace(pool.places_[0].cpu);
    }

   private:
    std::optional<PinnedThread> pinned_;
  };

  /// Calls body over [0, count) in pieces of at most `grain`, each piece once, and returns when all are
  /// done. A thread begins with its own contiguous share, the same one in every call with this count
  /// and grain, and then takes pieces from the others'. Nothing is allocated.
  /// The first exception thrown by a body is rethrown here, after all threads have stopped; pieces
  /// that were not begun by then are left out.
  /// One caller at a time: a second one waits. A body must not call back into the pool.
  void parallel_for(int64_t count, int64_t grain, Body body);

  /// Where the items of a loop begin among those of a larger one, over [0, of); of = 0: it is no larger.
  struct Part {
    int64_t first = 0;
    int64_t of = 0;
  };
  /// parallel_for() over [0, count) for a body that writes memory which the loop over `part` will read. With
  /// places, every thread itself writes what it will begin with in that loop: the system puts memory on the
  /// node of the thread that touches it first. Without, the same as parallel_for().
  void first_touch(Part part, int64_t count, int64_t grain, Body body);

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

  void run(int64_t count, int64_t grain, Body body, bool own);
  void work(int thread);
  bool enter(uint64_t& generation);
  uint64_t await(uint64_t seen);
  int idle_cores() const;
  void wake(bool all);
  void take_pieces(int thread);

  std::vector<std::thread> workers_;
  std::unique_ptr<Share[]> shares_;  // [size()]
  std::vector<ThreadPlace> places_;  // [size()], or none
  int size_ = 1;
  int cores_ = 1;
  bool crowded_ = false;  // more threads than cores: then as many as have a core are kept awake

  // The job: written by the caller while the gate is shut and nobody is inside.
  const Body* body_ = nullptr;
  int64_t grain_ = 1;
  bool own_ = false;  // every thread does its own share and no other
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
  // Parked workers leave in the order in which they came; guarded by parking_.
  uint64_t tickets_ = 0;  // given to those that came
  uint64_t called_ = 0;   // the last that may leave
};

}  // namespace bitqwen
