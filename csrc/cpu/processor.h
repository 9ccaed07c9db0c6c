// Which processor a thread runs on, and how a worker gets off its caller's.
//
// Linux may wake a thread on the waker's own processor even if others are idle. There it only takes the caller's time,
// until the load is balanced milliseconds later: up to 2 Mi elements two threads were as slow as one.
#pragma once

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace fastreg {

// -1 where that cannot be told.
inline int current_processor() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// The one that the process began with.
inline bool is_main_thread() {
#if defined(__linux__)
  static thread_local const bool is_main = gettid() == getpid();
  return is_main;
#else
  return false;
#endif
}

// The processors that a worker may run on.
class Processors {
 public:
#if defined(__linux__)
  Processors() : is_known_(read(allowed_)), placed_(allowed_) {}
#endif

  // Moves this thread off `processor` for good if it is there and may run elsewhere.
  void leave(int processor) {
#if defined(__linux__)
    cpu_set_t now;
    if (!is_known_ || processor < 0 || current_processor() != processor || !read(now)) {
      return;
    }
    if (!CPU_EQUAL(&now, &placed_)) {
      // Somebody else has placed this thread since, and that stands. One who gave it the very set that it has placed
      // itself on cannot be told from nobody.
      allowed_ = now;
    }
    cpu_set_t others = allowed_;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others) != 0) {
      sched_setaffinity(0, sizeof others, &others);
    }
    read(placed_);
#else
    (void)processor;
#endif
  }

 private:
#if defined(__linux__)
  static bool read(cpu_set_t& set) {
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) == 0;
  }

  cpu_set_t allowed_;  // by others than this class
  bool is_known_;
  cpu_set_t placed_;  // by this class, as the system has it
#endif
};

}  // namespace fastreg
