// What the machine can do at most, measured by loops that do nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bitqwen::benchmark {

/// Reads `bytes` at `data` as several streams; returns a value that depends on all of them.
uint64_t read_all(const uint8_t* data, size_t bytes);

/// Runs `rounds` rounds of int8 multiply-adds from registers, the widest this CPU has (or 256 bits at
/// most if `avx2`), and returns how many that were; 0 where no such instruction is known.
double multiply_adds(int64_t rounds, bool avx2);

}  // namespace bitqwen::benchmark
