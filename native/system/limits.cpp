#include "system/limits.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace bitqwen {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// The first number of a file ("max" is none: no limit), or kUnknown.
int64_t number_in(const fs::path& path) {
  std::ifstream file(path);
  int64_t value;
  return file >> value ? value : kUnknown;
}

int64_t field_in(const fs::path& path, const std::string& name) {
  std::ifstream file(path);
  std::string key;
  while (file >> key) {
    int64_t value;
    if (key == name) return file >> value ? value : kUnknown;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return kUnknown;
}

// This process's group in the hierarchy of `controller` ("" is version 2's only one), then its parents
// up to the root: each of them may set a limit. In a container the path may be the host's; the parts
// that do not exist are left out by whoever reads them.
std::vector<fs::path> groups(const fs::path& root, const std::string& controller) {
  const fs::path base = root / "sys/fs/cgroup" / controller;
  std::vector<fs::path> found;
  std::ifstream file(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {  // number:controllers:path
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::stringstream controllers(line.substr(first + 1, second - first - 1));
    bool found_it = second == first + 1 && controller.empty();
    for (std::string one; std::getline(controllers, one, ',');) found_it = found_it || one == controller;
    if (!found_it) continue;
    fs::path path = fs::path(line.substr(second + 1)).relative_path();
    for (; !path.empty(); path = path.parent_path()) found.push_back(base / path);
    break;
  }
  found.push_back(base);
  return found;
}

int64_t left_in_group(const fs::path& group, const char* limit, const char* used, const char* cache_key) {
  const int64_t allowed = number_in(group / limit), taken = number_in(group / used);
  if (allowed == kUnknown || taken == kUnknown) return kUnknown;
  int64_t cache = field_in(group / "memory.stat", cache_key);  // pages that the system would give back
  if (cache == kUnknown) cache = 0;
  return std::max<int64_t>(0, allowed - taken + cache);
}

}  // namespace

double cpu_quota(const fs::path& root) {
  double cores = std::numeric_limits<double>::infinity();
  const auto consider = [&](int64_t quota, int64_t period) {  // microseconds of CPU time a period
    if (quota > 0 && quota != kUnknown && period > 0 && period != kUnknown) {
      cores = std::min(cores, static_cast<double>(quota) / static_cast<double>(period));
    }
  };
  for (const fs::path& group : groups(root, "")) {
    std::ifstream file(group / "cpu.max");
    int64_t quota, period;
    if (file >> quota >> period) consider(quota, period);
  }
  for (const fs::path& group : groups(root, "cpu")) {
    consider(number_in(group / "cpu.cfs_quota_us"), number_in(group / "cpu.cfs_period_us"));
  }
  return cores;
}

int64_t memory_left(const fs::path& root) {
  int64_t available = field_in(root / "proc/meminfo", "MemAvailable:");
  if (available != kUnknown) available *= 1024;
  for (const fs::path& group : groups(root, "")) {
    available = std::min(available, left_in_group(group, "memory.max", "memory.current", "inactive_file"));
  }
  for (const fs::path& group : groups(root, "memory")) {
    available = std::min(available, left_in_group(group, "memory.limit_in_bytes", "memory.usage_in_bytes",
                                                  "total_inactive_file"));
  }
  return available;
}

int available_cores() {
  int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = std::max(1, CPU_COUNT(&set));
  const double quota = cpu_quota("/");
  if (quota < cores) cores = std::max(1, static_cast<int>(std::ceil(quota)));
#endif
  return cores;
}

int64_t available_memory() { return memory_left("/"); }

}  // namespace bitqwen
