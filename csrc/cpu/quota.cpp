#include "quota.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

namespace fastreg {
namespace {

// The least of several limits.
class Limit {
 public:
  // Microseconds of processor time in so many of the clock.
  void add(double quota, double period) {
    if (quota > 0.0 && period > 0.0) {
      const int processors = static_cast<int>(std::min(std::ceil(quota / period), 1e6));
      processors_ = processors_ == 0 ? processors : std::min(processors_, processors);
    }
  }
  int processors() const { return processors_; }

 private:
  int processors_ = 0;
};

// Version 2: "200000 100000", or "max 100000".
void add_limit_of_version_2(const std::string& folder, Limit& limit) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0.0;
  double period = 0.0;
  if (file >> quota >> period) {
    limit.add(quota, period);
  }
}

// Version 1: a quota of -1 is none.
void add_limit_of_version_1(const std::string& folder, Limit& limit) {
  std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
  std::ifstream period_file(folder + "/cpu.cfs_period_us");
  double quota = 0.0;
  double period = 0.0;
  if (quota_file >> quota && period_file >> period) {
    limit.add(quota, period);
  }
}

// Adds the limits of a group and of those around it. In a container the path may be the host's, of which only the end,
// or nothing but the mount itself, is to be seen here: what cannot be opened has no limit.
void add_limits(void (*add)(const std::string&, Limit&), const std::string& mount, std::string path, Limit& limit) {
  if (path.find("/..") != std::string::npos) {
    path.clear();  // outside of what this process may see
  }
  for (;;) {
    while (!path.empty() && path.back() == '/') {
      path.pop_back();
    }
    add(mount + path, limit);
    if (path.empty()) {
      return;
    }
    path.erase(path.find_last_of('/'));
  }
}

bool has_controller(const std::string& controllers, const std::string& wanted) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == wanted) {
      return true;
    }
  }
  return false;
}

}  // namespace

int processors_by_quota(const std::string& root) {
  const std::string mounts = root + "/sys/fs/cgroup";
  Limit limit;
  std::ifstream groups(root + "/proc/self/cgroup");
  // "0::/path" for version 2, "number:controllers:/path" for version 1
  for (std::string line; std::getline(groups, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || second + 1 >= line.size() || line[second + 1] != '/') {
      continue;
    }
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      add_limits(add_limit_of_version_2, mounts, path, limit);
      add_limits(add_limit_of_version_2, mounts + "/unified", path, limit);
    } else if (has_controller(controllers, "cpu")) {
      add_limits(add_limit_of_version_1, mounts + "/cpu", path, limit);
      if (controllers != "cpu") {
        add_limits(add_limit_of_version_1, std::string(mounts).append("/").append(controllers), path, limit);
      }
    }
  }
  return limit.processors();
}

}  // namespace fastreg
