// What this process may use of the machine: cores and memory, by the system and by its control group.
#pragma once

#include <cstdint>
#include <filesystem>

namespace bitqwen {

/// Cores that this process may keep busy: its affinity mask, and the CPU quota of its control group
/// rounded up; at least 1.
int available_cores();

/// Bytes that this process could take without swapping: the system's estimate, bounded by what its
/// control group has left. INT64_MAX where the system does not tell.
int64_t available_memory();

/// The same two questions, asked of a copy of /proc and /sys/fs/cgroup below `root`. For tests.
double cpu_quota(const std::filesystem::path& root);  // cores; infinity when there is no limit
int64_t memory_left(const std::filesystem::path& root);

}  // namespace bitqwen
