#include "model/memory.h"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

namespace bitqwen {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The number in a file that holds just one ("max" means no limit), or kUnknown.
int64_t number_in(const char* path) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : kUnknown;
}

int64_t field_in(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::string key;
  int64_t value;
  while (file >> key) {
    if (key == name && file >> value) return value;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnknown;
}

int64_t left_in_group(const char* limit, const char* used, const char* stat, const char* cache_key) {
  const int64_t allowed = number_in(limit), taken = number_in(used);
  if (allowed == kUnknown || taken == kUnknown) return kUnknown;
  int64_t cache = field_in(stat, cache_key);  // pages that the system would give back
  if (cache == kUnknown) cache = 0;
  return std::max<int64_t>(0, allowed - taken + cache);
}

}  // namespace

int64_t available_memory() {
  int64_t available = field_in("/proc/meminfo", "MemAvailable:");
  if (available != kUnknown) available *= 1024;
  available = std::min(available, left_in_group("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current",
                                                "/sys/fs/cgroup/memory.stat", "inactive_file"));
  return std::min(available, left_in_group("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                           "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                                           "/sys/fs/cgroup/memory/memory.stat", "total_inactive_file"));
}

}  // namespace bitqwen
