#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <vector>

#include "system/limits.h"
#include "system/numa.h"

namespace fs = std::filesystem;

namespace {

// A made-up root directory, removed afterwards.
class Machine {
 public:
  Machine() : root(fs::temp_directory_path() / ("bitqwen-limits-" + std::to_string(getpid()))) {
    fs::remove_all(root);
  }
  ~Machine() { fs::remove_all(root); }
  void file(const std::string& path, const std::string& content) const {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << content;
  }
  const fs::path root;
};

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

}  // namespace

TEST_CASE("a machine that tells nothing has no limits") {
  const Machine machine;
  CHECK_EQ(bitqwen::memory_left(machine.root), kUnknown);
  CHECK(std::isinf(bitqwen::cpu_quota(machine.root)));
}

TEST_CASE("memory: the system's own estimate") {
  const Machine machine;
  machine.file("proc/meminfo", "MemTotal: 2000 kB\nMemFree: 10 kB\nMemAvailable:    1000 kB\n");
  CHECK_EQ(bitqwen::memory_left(machine.root), 1000 * 1024);
}

TEST_CASE("control groups, version 2: the tightest of the group and its parents") {
  const Machine machine;
  machine.file("proc/meminfo", "MemAvailable: 1000000 kB\n");
  machine.file("proc/self/cgroup", "0::/a/b\n");
  machine.file("sys/fs/cgroup/a/b/memory.max", "max\n");
  machine.file("sys/fs/cgroup/a/b/memory.current", "4096\n");
  machine.file("sys/fs/cgroup/a/memory.max", "500000\n");
  machine.file("sys/fs/cgroup/a/memory.current", "300000\n");
  machine.file("sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 50000\nactive_file 7\n");
  CHECK_EQ(bitqwen::memory_left(machine.root), 250000);
  machine.file("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(std::isinf(bitqwen::cpu_quota(machine.root)));
  machine.file("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  CHECK_EQ(bitqwen::cpu_quota(machine.root), 2.5);
}

TEST_CASE("control groups, version 1, named as the host names them") {
  const Machine machine;
  machine.file("proc/meminfo", "MemAvailable: 1000000 kB\n");
  machine.file("proc/self/cgroup", "4:memory:/docker/x\n3:cpuacct,cpu:/docker/x\n0::/\n");
  machine.file("sys/fs/cgroup/memory/memory.limit_in_bytes", "900000\n");
  machine.file("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000\n");
  CHECK_EQ(bitqwen::memory_left(machine.root), 0);
  machine.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  machine.file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  CHECK(std::isinf(bitqwen::cpu_quota(machine.root)));
  machine.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "150000\n");
  CHECK_EQ(bitqwen::cpu_quota(machine.root), 1.5);
}

TEST_CASE("this machine") {
  CHECK_GE(bitqwen::available_cores(), 1);
  CHECK_GT(bitqwen::available_memory(), 0);
}

TEST_CASE("lists of CPUs as the kernel writes them") {
  using bitqwen::parse_cpu_list;
  CHECK_EQ(parse_cpu_list("0"), std::vector{0});
  CHECK_EQ(parse_cpu_list("0-3,8,10-11"), std::vector{0, 1, 2, 3, 8, 10, 11});
  CHECK_EQ(parse_cpu_list("4-5,0-1,1"), std::vector{0, 1, 4, 5});
  CHECK_EQ(parse_cpu_list("3-1"), std::vector<int>{});
  for (const char* none : {"", "-", "a", "0-", "0,", ",1", "1 2", "0-99999999999", "-1", "0-8192"}) {
    CAPTURE(none);
    CHECK(parse_cpu_list(none).empty());
  }
}

TEST_CASE("memory nodes: those with CPUs that may be used") {
  const Machine machine;
  const std::vector<int> allowed = {0, 1, 2, 5, 6};
  CHECK(bitqwen::numa_nodes(machine.root, allowed).empty());
  machine.file("sys/devices/system/node/online", "0-2,4\n");
  machine.file("sys/devices/system/node/node0/cpulist", "0-3\n");
  machine.file("sys/devices/system/node/node1/cpulist", "4-7\n");
  machine.file("sys/devices/system/node/node2/cpulist", "\n");   // memory alone
  machine.file("sys/devices/system/node/node4/cpulist", "8\n");  // taken from this process
  const std::vector<bitqwen::NumaNode> nodes = {{0, {0, 1, 2}}, {1, {5, 6}}};
  CHECK(bitqwen::numa_nodes(machine.root, allowed) == nodes);
}

TEST_CASE("threads are spread evenly over nodes, in their order") {
  const std::vector<bitqwen::NumaNode> nodes = {{0, {0, 1, 2}}, {3, {5, 6}}};
  using Places = std::vector<bitqwen::ThreadPlace>;
  CHECK(bitqwen::spread_threads(nodes, 1) == Places{{0, 0}});
  CHECK(bitqwen::spread_threads(nodes, 2) == Places{{0, 0}, {5, 1}});
  CHECK(bitqwen::spread_threads(nodes, 5) == Places{{0, 0}, {1, 0}, {2, 0}, {5, 1}, {6, 1}});
  CHECK(bitqwen::spread_threads(nodes, 6) == Places{{0, 0}, {1, 0}, {2, 0}, {5, 1}, {6, 1}, {5, 1}});
  CHECK(bitqwen::spread_threads({}, 4).empty());
}

TEST_CASE("a pinned thread runs on its CPU alone, and everywhere again afterwards") {
  const std::vector<int> before = bitqwen::allowed_cpus();
  if (before.empty()) return;  // a system without such masks
  {
    const bitqwen::PinnedThread pinned(before.back());
    CHECK_EQ(bitqwen::allowed_cpus(), std::vector{before.back()});
  }
  CHECK_EQ(bitqwen::allowed_cpus(), before);
  {
    const bitqwen::PinnedThread refused(8191);  // no machine has it
    CHECK_EQ(bitqwen::allowed_cpus(), before);
  }
  CHECK_EQ(bitqwen::allowed_cpus(), before);
}
