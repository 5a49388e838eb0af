#include "threads/pool.h"

#include <algorithm>
#include <exception>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bitqwen {
namespace {

// About 50 to 100 microseconds of spinning: longer than the serial gaps inside a token, shorter than
// the time between two tokens of a slow reader.
constexpr int kSpins = 4000;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

struct ThreadPool::Job {
  const std::function<void(int64_t, int64_t, int)>* body;
  int64_t count;
  int64_t grain;
  std::atomic<int64_t> next{0};
  std::atomic<int> busy{0};  // workers that have not yet left this job
  std::mutex failure_mutex;
  std::exception_ptr failure;
};

int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool::ThreadPool(int threads) {
  const int total = threads > 0 ? threads : available_cores();
  workers_.reserve(total - 1);
  for (int i = 1; i < total; ++i) workers_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(mutex_);
    stopping_.store(true);
  }
  wake_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(Job& job, int thread) {
  for (;;) {
    const int64_t begin = job.next.fetch_add(job.grain, std::memory_order_relaxed);
    if (begin >= job.count) return;
    try {
      (*job.body)(begin, std::min(job.count, begin + job.grain), thread);
    } catch (...) {
      std::lock_guard lock(job.failure_mutex);
      if (!job.failure) job.failure = std::current_exception();
      job.next.store(job.count);
    }
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  for (;;) {
    int spins = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (stopping_.load(std::memory_order_relaxed)) return;
      if (++spins < kSpins) {
        relax();
        continue;
      }
      std::unique_lock lock(mutex_);
      parked_.fetch_add(1);
      wake_.wait(lock, [&] { return stopping_.load() || generation_.load() != seen; });
      parked_.fetch_sub(1);
    }
    seen = generation_.load(std::memory_order_acquire);
    Job* job = job_.load(std::memory_order_acquire);
    run(*job, thread);
    job->busy.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::parallel_for(int64_t count, int64_t grain,
                              const std::function<void(int64_t, int64_t, int)>& body) {
  if (count <= 0) return;
  grain = std::max<int64_t>(1, grain);
  std::lock_guard one_caller(callers_);
  if (workers_.empty() || count <= grain) {
    for (int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(count, begin + grain), 0);
    return;
  }
  Job job{&body, count, grain, {}, {}, {}, {}};
  job.busy.store(static_cast<int>(workers_.size()));
  job_.store(&job, std::memory_order_release);
  generation_.fetch_add(1);
  if (parked_.load() > 0) {
    std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  run(job, 0);
  // Every worker passes through every job, so that `job` may leave this frame safely.
  while (job.busy.load(std::memory_order_acquire) > 0) relax();
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace bitqwen
