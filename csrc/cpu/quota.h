// The processor time that control groups (Linux' cgroups, version 1 and 2) allow this process, in processors.
//
// A container with two processors' worth of time on a machine of 64 may run on all 64, for a 32nd part of the time:
// more threads than it has time for are stopped in the midst of their work, and waited for.
#pragma once

#include <string>

namespace fastreg {

// The smallest quota of the process's group and those around it, divided by its period and rounded up, so at least 1; 0
// where there is no limit, or none that can be read. `root` stands before every path that is read: for tests.
int processors_by_quota(const std::string& root = "");

}  // namespace fastreg
