// Which processor a thread runs on, and how a worker gets off its caller's.
//
// Linux may wake a thread on the waker's own processor even if others are idle. There it only takes the caller's time,
// until the load is balanced milliseconds later: up to 2 Mi elements two threads were as slow as one.
#pragma once

#if defined(__linux__)
#include <sched.h>
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

// The processors that a worker may run on, as they were when it was made.
class Processors {
 public:
  Processors() {
#if defined(__linux__)
    is_known_ = sched_getaffinity(0, sizeof allowed_, &allowed_) == 0;
#endif
  }

  // Moves this thread off `processor` for good if it is there and may run elsewhere.
  void leave(int processor) const {
#if defined(__linux__)
    if (!is_known_ || processor < 0 || current_processor() != processor) {
      return;
    }
    cpu_set_t others = allowed_;
    CPU_CLR(processor, &others);
    if (CPU_COUNT(&others) != 0) {
      sched_setaffinity(0, sizeof others, &others);
    }
#else
    (void)processor;
#endif
  }

 private:
#if defined(__linux__)
  cpu_set_t allowed_;
  bool is_known_ = false;
#endif
};

}  // namespace fastreg
