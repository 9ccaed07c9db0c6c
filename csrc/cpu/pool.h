// Threads that claim tasks.
//
// The caller works too, and waits only for tasks that a worker has claimed: a worker that the system does not run costs
// nothing. Idle workers sleep. Nobody spins beside the pools of other libraries but for two bounded waits: the
// caller's, for tasks that run at this moment, and a worker's, for the next of calls that follow each other within
// microseconds. Several callers may be inside at once. After fork() the child starts a pool of its own.
#pragma once

#include <cstdint>

#include "tasks.h"

namespace fastreg {

// Runs task(context, 0..count-1), each once, on at most `threads` threads including this one.
void run_tasks(Task task, void* context, std::int64_t count, int threads);

// A call that is worth a second thread only if that one is awake: to wake it takes longer. Lives as long as the call.
class BriefCall {
 public:
  BriefCall();
  ~BriefCall();
  BriefCall(const BriefCall&) = delete;
  BriefCall& operator=(const BriefCall&) = delete;

  // A worker watches for calls, or will from now on, since brief calls follow each other without much between them.
  bool is_worth_sharing() const { return is_worth_sharing_; }

 private:
  bool is_worth_sharing_;
};

// The processors that the process may run on (its main thread's affinity), or as many as its control group gives it
// time for, if these are fewer. Both may change while it runs: they are read again when a second has passed.
int usable_processors();

// How many threads a call may use: what was set, else FASTREG_NUM_THREADS, else the usable processors.
int get_num_threads();

// Throws std::invalid_argument unless 1 <= count <= max_threads.
void set_num_threads(std::int64_t count);

constexpr int max_threads = 1024;

}  // namespace fastreg
