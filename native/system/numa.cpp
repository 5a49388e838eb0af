#include "system/numa.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>

#if defined(__linux__)
#include <sched.h>
#endif

namespace bitqwen {
namespace {

namespace fs = std::filesystem;

constexpr int kMostCpus = 8192;  // the most that Linux can be built for

std::vector<int> list_in(const fs::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return parse_cpu_list(line);
}

}  // namespace

std::vector<int> parse_cpu_list(std::string_view text) {
  std::vector<int> found;
  const char* at = text.data();
  const char* const end = at + text.size();
  const auto number = [&](int& value) {
    const auto [rest, error] = std::from_chars(at, end, value);
    at = rest;
    return error == std::errc() && value >= 0 && value < kMostCpus;
  };
  while (at != end) {
    int first = 0, last = 0;
    if (!number(first)) return {};
    last = first;
    if (at != end && *at == '-' && (++at, !number(last))) return {};
    for (int cpu = first; cpu <= last; ++cpu) found.push_back(cpu);
    if (at == end) break;
    if (*at++ != ',' || at == end) return {};
  }
  std::ranges::sort(found);
  found.erase(std::ranges::unique(found).begin(), found.end());
  return found;
}

std::vector<NumaNode> numa_nodes(const fs::path& root, std::span<const int> allowed) {
  const fs::path folder = root / "sys/devices/system/node";
  std::vector<NumaNode> nodes;
  for (const int id : list_in(folder / "online")) {
    NumaNode node{id, {}};
    for (const int cpu : list_in(folder / ("node" + std::to_string(id)) / "cpulist")) {
      if (std::ranges::find(allowed, cpu) != allowed.end()) node.cpus.push_back(cpu);
    }
    if (!node.cpus.empty()) nodes.push_back(std::move(node));
  }
  return nodes;
}

std::vector<ThreadPlace> spread_threads(std::span<const NumaNode> nodes, int threads) {
  std::vector<ThreadPlace> places;
  const auto count = std::min(static_cast<int>(nodes.size()), threads);
  for (int node = 0; node < count; ++node) {
    const int own = threads / count + (node < threads % count ? 1 : 0);
    const std::vector<int>& cpus = nodes[static_cast<size_t>(node)].cpus;
    for (int i = 0; i < own; ++i) places.push_back({cpus[static_cast<size_t>(i) % cpus.size()], node});
  }
  return places;
}

#if defined(__linux__)
namespace {

// A mask of as many CPUs as Linux can have: cpu_set_t alone ends at 1,024.
struct Mask {
  cpu_set_t sets[kMostCpus / CPU_SETSIZE] = {};
};

}  // namespace

std::vector<int> allowed_cpus() {
  Mask mask;
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof mask, mask.sets) != 0) return cpus;
  for (int cpu = 0; cpu < kMostCpus; ++cpu) {
    if (CPU_ISSET_S(cpu, sizeof mask, mask.sets)) cpus.push_back(cpu);
  }
  return cpus;
}

struct PinnedThread::Before {
  Mask mask;
};

PinnedThread::PinnedThread(int cpu) {
  auto before = std::make_unique<Before>();
  Mask only;
  if (cpu < 0 || cpu >= kMostCpus) return;
  CPU_SET_S(cpu, sizeof only, only.sets);
  if (sched_getaffinity(0, sizeof before->mask, before->mask.sets) != 0) return;
  if (sched_setaffinity(0, sizeof only, only.sets) == 0) before_ = std::move(before);
}

PinnedThread::~PinnedThread() {
  if (before_) sched_setaffinity(0, sizeof before_->mask, before_->mask.sets);
}
#else
std::vector<int> allowed_cpus() { return {}; }

struct PinnedThread::Before {};
PinnedThread::PinnedThread(int) {}
PinnedThread::~PinnedThread() = default;
#endif

}  // namespace bitqwen
