// Which cores are near which memory, and threads that stay where they were put.
#pragma once

#include <filesystem>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace bitqwen {

/// A memory node and the CPUs of it that this process may use.
struct NumaNode {
  int id = 0;
  std::vector<int> cpus;
  bool operator==(const NumaNode&) const = default;
};

/// Where a thread runs: a CPU, and which of the nodes that have threads it belongs to.
struct ThreadPlace {
  int cpu = 0;
  int node = 0;  // counted from 0, without gaps
  bool operator==(const ThreadPlace&) const = default;
};

/// The numbers of a list as the kernel writes it, "0-3,8,10-11"; empty if it is none.
std::vector<int> parse_cpu_list(std::string_view text);

/// CPUs that the calling thread may run on; empty where the system does not tell.
std::vector<int> allowed_cpus();

/// Nodes of the machine whose /sys stands below `root`, by number, with those of their CPUs that are
/// allowed; nodes without any are left out.
std::vector<NumaNode> numa_nodes(const std::filesystem::path& root, std::span<const int> allowed);

/// As many threads on each node as on the others, or one more, the first node's threads first. The kernel
/// counts a core's second hardware thread after all first ones, so taking CPUs in order fills cores first;
/// a node with more threads than CPUs gives its CPUs several.
std::vector<ThreadPlace> spread_threads(std::span<const NumaNode> nodes, int threads);

/// Keeps the calling thread on one CPU until this is destroyed, on the same thread. Advice, like all that is
/// about placement: where the system refuses, the thread stays as it was.
class PinnedThread {
 public:
  explicit PinnedThread(int cpu);
  ~PinnedThread();
  PinnedThread(const PinnedThread&) = delete;
  PinnedThread& operator=(const PinnedThread&) = delete;

 private:
  struct Before;
  std::unique_ptr<Before> before_;  // null: nothing to restore
};

}  // namespace bitqwen
