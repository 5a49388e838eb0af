// What a loop of the thread pool costs beyond its work: opening it, sharing it out, and waiting until the
// last thread is done. Numbers of threads take turns, and the quickest and the median of the rounds are told.
//
//   empty    loops of nothing: the caller is through before a worker comes
//   joined   loops that every thread must come to: a piece for each, that ends when all have begun (only
//            where each thread has a core)
//   working  loops of --work microseconds of one core's arithmetic in --pieces pieces: the time beyond
//            what as many cores would take at best
//   woken    an empty loop after the workers were idle for 5 milliseconds and have parked
//
// With more threads than cores, a thread that holds a piece may have no core. Prints one line of JSON for
// each number of threads; benchmarks/barriers.py asks for them and knows how many loops a token has.
//
//   barrier_benchmark [--threads 1,2,8] [--rounds N] [--loops N] [--work US] [--pieces N]
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "system/limits.h"
#include "threads/pool.h"

using namespace bitqwen;

namespace {

using Clock = std::chrono::steady_clock;

struct Options {
  std::vector<int> threads = {1, 2, 4, 8};
  int rounds = 20;
  int loops = 2000;  // of a round
  double work = 250;
  int pieces = 64;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i], value = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--threads") {
      options.threads.clear();
      for (size_t at = 0; at < value.size(); at = std::min(value.find(',', at), value.size() - 1) + 1) {
        options.threads.push_back(std::atoi(value.c_str() + at));
      }
    } else if (name == "--rounds") {
      options.rounds = std::atoi(value.c_str());
    } else if (name == "--loops") {
      options.loops = std::atoi(value.c_str());
    } else if (name == "--work") {
      options.work = std::atof(value.c_str());
    } else if (name == "--pieces") {
      options.pieces = std::atoi(value.c_str());
    } else {
      std::fprintf(stderr, "unknown option %s; --threads, --rounds, --loops, --work and --pieces are known\n",
                   name.c_str());
      std::exit(2);
    }
  }
  const bool sensible = options.rounds > 0 && options.loops > 0 && options.work > 0 && options.pieces > 0 &&
                        !options.threads.empty() && std::ranges::min(options.threads) > 0;
  if (!sensible) {
    std::fprintf(stderr, "every option is a number above 0\n");
    std::exit(2);
  }
  return options;
}

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Arithmetic that no compiler shortens and that touches no memory: each step needs the one before.
uint64_t arithmetic(int64_t steps) {
  uint64_t state = static_cast<uint64_t>(steps) | 1;
  for (int64_t i = 0; i < steps; ++i) state = state * 6364136223846793005u + 1442695040888963407u;
  return state;
}

struct Times {
  std::vector<double> values;
  double best() const { return *std::ranges::min_element(values); }
  double median() {
    std::ranges::sort(values);
    return values[values.size() / 2];
  }
};

struct Side {
  std::unique_ptr<ThreadPool> pool;
  Times empty, joined, working, woken;
};

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const int cores = available_cores();
  // Steps a second, quickest of a few: this core's own arithmetic.
  constexpr int64_t kProbe = 2000000;
  volatile uint64_t sink = 0;
  double probe = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 10; ++i) {
    const auto start = Clock::now();
    sink = sink ^ arithmetic(kProbe);
    probe = std::min(probe, seconds_since(start));
  }
  const auto steps = static_cast<int64_t>(options.work * 1e-6 / options.pieces / probe * kProbe);
  const double piece = probe * static_cast<double>(steps) / kProbe;

  std::vector<Side> sides;
  // Those that are not measured have parked: each measurement begins with a pause.
  for (const int threads : options.threads) {
    sides.emplace_back().pool = std::make_unique<ThreadPool>(threads);
  }
  std::vector<uint64_t> results(static_cast<size_t>(options.pieces) * 8);  // a cache line for each piece
  const int working_loops = std::max(1, options.loops / 20);
  for (int round = 0; round < options.rounds; ++round) {
    for (Side& side : sides) {
      ThreadPool& pool = *side.pool;
      const auto nothing = [](int64_t, int64_t, int) {};
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      auto start = Clock::now();
      pool.parallel_for(pool.size(), 1, nothing);
      side.woken.values.push_back(seconds_since(start));

      for (int i = 0; i < options.loops / 10; ++i) pool.parallel_for(pool.size(), 1, nothing);
      start = Clock::now();
      for (int i = 0; i < options.loops; ++i) pool.parallel_for(pool.size(), 1, nothing);
      side.empty.values.push_back(seconds_since(start) / options.loops);

      if (pool.size() <= cores) {
        std::atomic<int64_t> begun{0};
        start = Clock::now();
        for (int64_t i = 1; i <= options.loops; ++i) {
          pool.parallel_for(pool.size(), 1, [&](int64_t, int64_t, int) {
            ++begun;
            while (begun.load() < i * pool.size()) {
            }
          });
        }
        side.joined.values.push_back(seconds_since(start) / options.loops);
      }

      start = Clock::now();
      for (int i = 0; i < working_loops; ++i) {
        pool.parallel_for(options.pieces, 1, [&](int64_t begin, int64_t, int) {
          results[static_cast<size_t>(begin) * 8] = arithmetic(steps);
        });
      }
      // The busiest core does so many pieces at least.
      const int together = std::min(cores, pool.size());
      const double least = piece * ((options.pieces + together - 1) / together);
      side.working.values.push_back(seconds_since(start) / working_loops - least);
    }
  }
  for (const uint64_t result : results) sink = sink ^ result;
  for (Side& side : sides) {
    std::printf("{\"threads\": %d, \"cores\": %d, \"work_us\": %.1f", side.pool->size(), cores,
                piece * 1e6 * options.pieces);
    for (const auto& [name, times] : {std::pair{"empty", &side.empty}, std::pair{"joined", &side.joined},
                                      std::pair{"working", &side.working}, std::pair{"woken", &side.woken}}) {
      if (times->values.empty()) continue;
      std::printf(", \"%s_us\": [%.3f, %.3f]", name, times->best() * 1e6, times->median() * 1e6);
    }
    std::printf("}\n");
  }
  return 0;
}
