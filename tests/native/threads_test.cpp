#include <doctest/doctest.h>

#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "threads/pool.h"

using bitqwen::ThreadPool;

namespace {

// How often each of `count` items was visited.
std::vector<int> visits(ThreadPool& pool, int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
  pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int thread) {
    CHECK_LT(begin, end);
    CHECK_LE(end - begin, std::max<int64_t>(1, grain));
    CHECK_GE(thread, 0);
    CHECK_LT(thread, pool.size());
    for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
  });
  return {seen.begin(), seen.end()};
}

}  // namespace

TEST_CASE("every item is visited once, whatever the threads and the grain") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    CHECK_EQ(pool.size(), threads);
    for (const int64_t count : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {0, 1, 3, 16, 2000}) {
        CAPTURE(threads);
        CAPTURE(count);
        CAPTURE(grain);
        CHECK_EQ(visits(pool, count, grain), std::vector<int>(static_cast<size_t>(count), 1));
      }
    }
  }
}

TEST_CASE("many short jobs in a row") {
  ThreadPool pool(4);
  std::vector<int64_t> sums(16);
  for (int round = 0; round < 20000; ++round) {
    pool.parallel_for(16, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) sums[static_cast<size_t>(i)] += i;
    });
  }
  for (int64_t i = 0; i < 16; ++i) CHECK_EQ(sums[static_cast<size_t>(i)], 20000 * i);
}

TEST_CASE("a job after the workers have parked") {
  ThreadPool pool(3);
  for (int round = 0; round < 3; ++round) {
    CHECK_EQ(visits(pool, 100, 1), std::vector<int>(100, 1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

TEST_CASE("one thread's slow piece does not keep its other pieces from being done") {
  ThreadPool pool(2);
  std::atomic<int> done{0};
  // Item 0 waits until all others are done: only possible if its owner's share is taken over.
  pool.parallel_for(40, 1, [&](int64_t begin, int64_t, int) {
    if (begin == 0) {
      while (done.load() < 39) std::this_thread::yield();
    } else {
      ++done;
    }
  });
  CHECK_EQ(done.load(), 39);
}

TEST_CASE("an exception reaches the caller, and the pool goes on working") {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 50; ++round) {
      CHECK_THROWS_WITH_AS(pool.parallel_for(100, 1,
                                             [](int64_t begin, int64_t, int) {
                                               if (begin == 50) throw std::runtime_error("fifty");
                                             }),
                           "fifty", std::runtime_error);
      CHECK_EQ(visits(pool, 10, 1), std::vector<int>(10, 1));
    }
  }
}

TEST_CASE("several callers take turns") {
  ThreadPool pool(2);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 500; ++round) {
        pool.parallel_for(8, 1, [&](int64_t begin, int64_t end, int) { total += end - begin; });
      }
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK_EQ(total.load(), 4 * 500 * 8);
}

TEST_CASE("a function reference passes arguments and results through") {
  int calls = 0;
  const auto add = [&](int a, int b) {
    ++calls;
    return a + b;
  };
  const bitqwen::FunctionRef<int(int, int)> reference = add;
  CHECK_EQ(reference(2, 3), 5);
  CHECK_EQ(calls, 1);
}
