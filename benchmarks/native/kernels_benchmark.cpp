// Products of packed weights against what the machine can do at most, measured in the same run:
// decode against the bandwidth of a loop that only reads, prefill against int8 multiply-adds from
// registers. The sides take turns, and the best of the rounds counts. With one thread the clock is
// that thread's CPU time, so that other work on the machine costs memory bandwidth but not time.
//
//   kernels_benchmark [--threads N] [--types Q4_K,Q6_K,...] [--rounds N] [--mb N] (0: 64 rows, in the cache)
//   [--k N] [--columns 1,512]
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "kernels/multiply.h"
#include "measure/peaks.h"
#include "measure/random_tensors.h"
#include "threads/pool.h"
#include "weights/packed_matrix.h"

using namespace bitqwen;
using namespace bitqwen::measure;

namespace {

struct Options {
  int threads = 0;
  int rounds = 7;
  int64_t megabytes = 256;  // of weights in a decode product: more than the last-level cache
  int64_t k = 1536;
  std::vector<std::string> types = {"Q4_K", "Q6_K", "Q8_0", "Q4_0", "Q2_0", "TQ2_0"};
  std::vector<int> columns = {1, 2, 4, 8, 16, 64, 512};
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i], value = argv[i + 1];
    if (name == "--threads")
      options.threads = std::atoi(value.c_str());
    else if (name == "--rounds")
      options.rounds = std::atoi(value.c_str());
    else if (name == "--mb")
      options.megabytes = std::atoll(value.c_str());
    else if (name == "--k")
      options.k = std::atoll(value.c_str());
    else if (name == "--types")
      options.types = split(value);
    else if (name == "--columns") {
      options.columns.clear();
      for (const std::string& part : split(value)) options.columns.push_back(std::atoi(part.c_str()));
    } else {
      std::fprintf(stderr, "unknown option %s\n", name.c_str());
      std::exit(2);
    }
  }
  return options;
}

bool cpu_clock = false;

double now() {
  if (cpu_clock) {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class Body>
double seconds(Body&& body) {
  const double start = now();
  body();
  return now() - start;
}

gguf::TensorType type_named(const std::string& name) {
  for (const gguf::TensorType type : kAllTypes) {
    if (gguf::type_info(type).name == name) return type;
  }
  std::fprintf(stderr, "unknown type %s\n", name.c_str());
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  ThreadPool pool(options.threads);
  cpu_clock = pool.size() == 1;
  std::printf("%s; %d threads; K = %lld\n", isa_report().c_str(), pool.size(),
              static_cast<long long>(options.k));

  Peaks peaks(options.threads, std::max<int64_t>(options.megabytes, 16) << 20);
  // With one thread the clock is the thread's own, so the peaks are taken by it too.
  std::vector<uint8_t> memory(cpu_clock ? std::max<int64_t>(options.megabytes, 16) << 20 : 0, 1);
  volatile uint64_t sink = 0;
  const auto bandwidth = [&] {
    if (!cpu_clock) return peaks.read_bandwidth() * 1e-9;
    double time = std::numeric_limits<double>::infinity();
    for (const Streams streams : {Streams::kOne, Streams::kEight}) {
      time = std::min(time, seconds([&] { sink = sink ^ read_all(memory.data(), memory.size(), streams); }));
    }
    return static_cast<double>(memory.size()) / time * 1e-9;
  };
  const auto peak = [&] {
    if (!cpu_clock) return peaks.int8_rate() * 1e-9;
    double done = 0;
    const double time = seconds([&] { done = multiply_adds(2000000, current_isa()); });
    return done / time * 1e-9;
  };

  Random random(1);
  std::printf("%-6s %8s | %9s %9s %7s | %9s %9s %7s\n", "type", "columns", "GB/s", "of", "%", "GMAC/s", "of",
              "%");
  for (const std::string& name : options.types) {
    const gguf::TensorType type = type_named(name);
    const gguf::TypeInfo& info = gguf::type_info(type);
    const int64_t row_bytes = options.k / info.block_size * info.block_bytes;
    for (const int columns : options.columns) {
      // Many columns: the weights' bytes do not count, so less of them will do.
      const int64_t wanted = (options.megabytes << 20) / (columns > 8 ? 32 : 1);
      const int64_t rows = std::max<int64_t>(64, wanted / row_bytes / 64 * 64);
      // Small weights stay in the cache and are multiplied often, for a time that the clock can see.
      const int repeats = static_cast<int>(1 + int64_t{20000000} / (rows * options.k * columns));
      const Tensor small = random_tensor(type, 64, options.k, random);
      Tensor tensor;
      tensor.bytes.reserve(rows * row_bytes);
      for (int64_t r = 0; r < rows; r += 64)
        tensor.bytes.insert(tensor.bytes.end(), small.bytes.begin(), small.bytes.end());
      tensor.view = {.name = name,
                     .type = type,
                     .rows = rows,
                     .cols = options.k,
                     .bytes = tensor.bytes,
                     .codebook = small.codebook};
      const PackedMatrix w = PackedMatrix::pack(tensor.view, pool, preferred_ternary_layout(pool.size()));
      const std::vector<float> x = random_activations(columns * options.k, Shape::kNormal, random);
      ActivationBatch batch(columns, options.k);
      batch.start(columns, options.k, w.activation_group());
      for (int c = 0; c < columns; ++c) batch.set(c, x.data() + c * options.k);
      std::vector<float> y(columns * rows);
      double best_read = 0, best_peak = 0, best = 1e9;
      for (int round = 0; round < options.rounds; ++round) {
        best_read = std::max(best_read, bandwidth());
        best_peak = std::max(best_peak, peak());
        const int64_t grain = preferred_rows(w, columns) / kRowBlock;
        const auto product = [&] {
          pool.parallel_for((rows + kRowBlock - 1) / kRowBlock, grain, [&](int64_t begin, int64_t end, int) {
            multiply(w, batch, y.data(), rows, begin * kRowBlock, std::min(end * kRowBlock, rows));
          });
        };
        best = std::min(best, seconds([&] {
                                for (int i = 0; i < repeats; ++i) product();
                              }) / repeats);
      }
      const double read = static_cast<double>(rows * row_bytes) / best * 1e-9;
      const double rate = static_cast<double>(rows) * static_cast<double>(options.k * columns) / best * 1e-9;
      std::printf("%-6s %8d | %9.2f %9.2f %6.1f%% | %9.1f %9.1f %6.1f%%\n", name.c_str(), columns, read,
                  best_read, 100 * read / best_read, rate, best_peak,
                  best_peak > 0 ? 100 * rate / best_peak : 0.0);
      std::fflush(stdout);
    }
  }
  return 0;
}
