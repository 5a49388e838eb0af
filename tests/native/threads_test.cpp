#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>

#include "system/numa.h"
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

namespace {

// Two made-up nodes over the CPUs that this process may use, both the same one where there is only one.
std::vector<bitqwen::ThreadPlace> two_nodes(int threads) {
  std::vector<int> cpus = bitqwen::allowed_cpus();
  if (cpus.empty()) cpus = {0};
  const std::vector<bitqwen::NumaNode> nodes = {{0, {cpus.front()}}, {1, {cpus.back()}}};
  return bitqwen::spread_threads(nodes, threads);
}

}  // namespace

TEST_CASE("threads with places run there, the caller's as long as it says so") {
  const std::vector<int> before = bitqwen::allowed_cpus();
  for (const int threads : {1, 2, 5}) {
    const std::vector<bitqwen::ThreadPlace> places = two_nodes(threads);
    ThreadPool pool(99, places);
    CHECK_EQ(pool.size(), threads);
    CHECK_EQ(pool.nodes(), std::min(threads, 2));
    {
      const ThreadPool::Caller caller(pool);
      std::vector<std::vector<int>> cpus(static_cast<size_t>(threads));
      pool.first_touch({}, threads, 1, [&](int64_t begin, int64_t, int thread) {
        CHECK_EQ(begin, thread);
        cpus[static_cast<size_t>(thread)] = bitqwen::allowed_cpus();
      });
      for (int t = 0; t < threads; ++t) {
        if (!before.empty()) CHECK_EQ(cpus[static_cast<size_t>(t)], std::vector{places[t].cpu});
      }
      CHECK_EQ(visits(pool, 1000, 3), std::vector<int>(1000, 1));
    }
    CHECK_EQ(bitqwen::allowed_cpus(), before);
  }
  CHECK_EQ(ThreadPool(2).nodes(), 0);
}

TEST_CASE("whoever touches memory first begins with it in the loop that reads it") {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(0, two_nodes(threads));
    const ThreadPool::Caller caller(pool);
    for (const int64_t of : {1, 7, 100, 1000}) {
      // The shares of a loop over all items, by pieces of one.
      std::vector<int> reader(static_cast<size_t>(of));
      for (int64_t t = 0; t < threads; ++t) {
        for (int64_t i = of * t / threads; i < of * (t + 1) / threads; ++i) reader[i] = static_cast<int>(t);
      }
      // Written by two loops, of a third and of the rest.
      std::vector<int> writer(static_cast<size_t>(of), -1);
      for (const auto& [first, count] : {std::pair{int64_t{0}, of / 3}, std::pair{of / 3, of - of / 3}}) {
        pool.first_touch({first, of}, count, 4, [&](int64_t begin, int64_t end, int thread) {
          CHECK_LE(end - begin, 4);
          for (int64_t i = begin; i < end; ++i) writer[static_cast<size_t>(first + i)] = thread;
        });
      }
      CAPTURE(threads);
      CAPTURE(of);
      CHECK_EQ(writer, reader);
    }
    CHECK_THROWS_AS(pool.first_touch({}, 100, 1,
                                     [](int64_t begin, int64_t, int) {
                                       if (begin == 50) throw std::runtime_error("fifty");
                                     }),
                    std::runtime_error);
    CHECK_EQ(visits(pool, 10, 1), std::vector<int>(10, 1));
  }
}
