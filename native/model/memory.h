// How much memory there is, asked before it is taken.
#pragma once

#include <cstdint>

namespace bitqwen {

/// Bytes that this process could take without swapping: the system's estimate, bounded by the limit of
/// its control group. INT64_MAX where the system does not tell.
int64_t available_memory();

}  // namespace bitqwen
