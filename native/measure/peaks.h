// What the machine can do at most, measured by loops that do nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/isa.h"
#include "threads/pool.h"

namespace bitqwen::measure {

/// How memory is read. Which is faster depends on the CPU's own prefetching: one stream where it looks far
/// ahead (Zen 5: 42 against 38 GB/s a thread), several where it does not.
enum class Streams { kOne, kEight };

/// Reads `bytes` at `data`; returns a value that depends on all of them.
uint64_t read_all(const uint8_t* data, size_t bytes, Streams streams);

/// Runs `rounds` rounds of int8 multiply-adds from registers with the instructions of `isa`, and returns
/// how many that were; 0 where it has no such instruction.
double multiply_adds(int64_t rounds, Isa isa);

/// The two peaks with all threads of a pool at once. Every thread reads memory that it wrote first.
class Peaks {
 public:
  /// `bytes` to read in a pass: more than the last-level cache holds. Throws Error(kArgument) below 1 MiB,
  /// Error(kResource) where they do not fit into memory.
  Peaks(int threads, int64_t bytes);
  ~Peaks();
  Peaks(const Peaks&) = delete;
  Peaks& operator=(const Peaks&) = delete;

  int threads() const { return pool_.size(); }
  double read_bandwidth();  // bytes a second, of the quicker of a pass with one and with eight streams
  double int8_rate();       // multiply-adds a second with the live instruction set; 0: it has none

 private:
  ThreadPool pool_;
  int64_t piece_ = 0;  // bytes of one piece; each thread begins with its own
  size_t size_ = 0;
  uint8_t* memory_ = nullptr;
};

}  // namespace bitqwen::measure
