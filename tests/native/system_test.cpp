#include <doctest/doctest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "system/limits.h"

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
