// A quantised matrix taken apart: value = step * code - offset, with one step and offset a group of weights.
// What sweeps over a matrix work on, whatever the tensor type; and the way back to the type's bytes.
#pragma once

#include <cstdint>
#include <optional>

#include "gguf/types.h"

namespace bitqwen {

struct GridShape {
  int group = 0;          // weights that share a step
  int low = 0, high = 0;  // codes
};

/// The grid of a type, or nothing for types that are none.
std::optional<GridShape> grid_shape(gguf::TensorType type);

/// Takes `count` values apart: steps and offsets: [count / group], codes: [count]. unit: [count / group],
/// what steps are multiples of with whole numbers up to `most_units`; zero where any float16 will do.
struct GridArrays {
  float* steps;
  float* offsets;
  float* units;
  int8_t* codes;
};
void read_grid(gguf::TensorType type, const uint8_t* bytes, int64_t count, const GridArrays& out);

/// The largest number of units a step may have, either sign if `signed_steps`; 0 where there are no units.
struct UnitRange {
  int low = 0, high = 0;
};
UnitRange unit_range(gguf::TensorType type);

/// Puts codes: [count] and steps: [count / group] into bytes that hold the same matrix with others; a step
/// is rounded to what the type can hold. Offsets and units stay.
void write_grid(gguf::TensorType type, const float* steps, const int8_t* codes, int64_t count,
                uint8_t* bytes);

}  // namespace bitqwen
