// Control groups as files say them: version 1 and 2, nested, in containers and outside, and files that are torn.
#include "cpu/quota.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <utility>

#include "check.h"

namespace fastreg::test {
namespace {

using Files = std::initializer_list<std::pair<const char*, const char*>>;

// What is read where the system has these files and no others.
int processors_of(const Files& files) {
  char name[] = "/tmp/fastreg_quota_XXXXXX";
  CHECK(mkdtemp(name) != nullptr);
  const std::filesystem::path root(name);
  for (const auto& [path, text] : files) {
    const std::filesystem::path file = root / path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  const int processors = processors_by_quota(name);
  std::filesystem::remove_all(root);
  return processors;
}

}  // namespace

TEST(quota_of_version_2) {
  const char* groups = "proc/self/cgroup";
  CHECK(processors_of({}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "max 100000\n"}}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "200000 100000\n"}}) == 2);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "200001 100000\n"}}) == 3);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "1000 100000\n"}}) == 1);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", ""}}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "200000"}}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "200000 0\n"}}) == 0);
  CHECK(processors_of({{groups, "0::/\n"}, {"sys/fs/cgroup/cpu.max", "9000000000000000 1\n"}}) == 1'000'000);
}

TEST(quota_of_nested_groups) {
  const char* groups = "proc/self/cgroup";
  // The least of the group's own and of those around it.
  CHECK(processors_of({{groups, "0::/a/b/c\n"},
                       {"sys/fs/cgroup/a/cpu.max", "300000 100000\n"},
                       {"sys/fs/cgroup/a/b/cpu.max", "max 100000\n"},
                       {"sys/fs/cgroup/a/b/c/cpu.max", "800000 100000\n"},
                       {"sys/fs/cgroup/a/b/c/d/cpu.max", "100000 100000\n"}}) == 3);
  // A path of the host's, whose end is all that there is here.
  CHECK(processors_of({{groups, "0::/docker/0123\n"}, {"sys/fs/cgroup/cpu.max", "400000 100000\n"}}) == 4);
  CHECK(processors_of({{groups, "0::/../../x\n"}, {"sys/fs/cgroup/cpu.max", "400000 100000\n"}}) == 4);
  CHECK(processors_of({{groups, "0::/a\n"}, {"sys/fs/cgroup/unified/a/cpu.max", "500000 100000\n"}}) == 5);
}

TEST(quota_of_version_1) {
  const char* groups = "11:memory:/a\n4:cpu,cpuacct:/a\n3:cpuset:/\n1:name=systemd:/a\n0::/a\n";
  CHECK(processors_of({{"proc/self/cgroup", groups},
                       {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "250000\n"},
                       {"sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"},
                       {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"},
                       {"sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"}}) == 3);
  CHECK(processors_of({{"proc/self/cgroup", "4:cpu:/a\n"},
                       {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"},
                       {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "25000\n"}}) == 2);
  CHECK(processors_of({{"proc/self/cgroup", "4:cpuset:/\n"},
                       {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"},
                       {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "25000\n"}}) == 0);
  CHECK(processors_of({{"proc/self/cgroup", "4:cpu:/\n"}, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"}}) == 0);
}

TEST(quota_of_torn_files) {
  for (const char* groups : {"", "\n", "0\n", "0:\n", "0::\n", "0::x", "::::/", ":cpu:", "no colons"}) {
    CHECK(processors_of({{"proc/self/cgroup", groups}, {"sys/fs/cgroup/cpu.max", "x y\n"}}) == 0, groups);
  }
}

}  // namespace fastreg::test
