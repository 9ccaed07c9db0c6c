// The OpenMP team that runs torch's own operations.
//
// After each parallel operation a worker of that team spins for milliseconds, on the processor that a thread of ours
// would need, and it takes a task within a microsecond meanwhile.
//
// The runtime is looked up in what libtorch_cpu itself was linked to, as a process may hold several (scikit-learn
// brings another), and taken only if it is seen to be the one that torch asks: LD_PRELOAD may have put another before
// it. Its C interface is GOMP_parallel, which GCC's runtime has, and LLVM's and Intel's have too. Linux only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "tasks.h"

namespace fastreg {

class OpenMpTeam {
 public:
  using Region = void (*)(void*);
  struct Runtime {
    void (*parallel)(Region region, void* data, unsigned threads, unsigned flags);
    int (*thread_number)();
    int (*level)();
    int (*proc_bind)();
    void (*set_num_threads)(int);
  };

  explicit OpenMpTeam(const Runtime& runtime) : runtime_(runtime) {}

  // True where the calling thread is inside a parallel region.
  bool is_inside() const { return runtime_.level() > 0; }

  // True where each member has processors of its own (OMP_PROC_BIND): the main thread's affinity, which is then one of
  // them, says nothing of how many there are.
  bool is_bound() const { return runtime_.proc_bind() != 0; }

  // Whether the workers of the calling thread's team run at this moment, so that they are spinning; nothing where the
  // team is not known, since this thread has not run it yet or it has changed since.
  std::optional<bool> is_awake() const;

  // Runs task(context, 0..count-1), each once, on at most `threads` members of the caller's team, whatever its size.
  // All of it is called, and the others leave at once: a runtime that is asked for fewer ends the threads that it then
  // has no use for.
  void run(Task task, void* context, std::int64_t count, int threads) const;

 private:
  Runtime runtime_;
};

// What the calling thread may have of torch's threads at this moment.
struct TorchThreads {
  // As torch.get_num_threads() has it; max_threads where that cannot be told.
  int most;
  // Null where the tasks are for our own pool.
  const OpenMpTeam* team;
  // Why there is no team.
  const char* reason;
};
TorchThreads torch_threads();

// Whose threads take the tasks of calls on torch's tensors: "torch", the default, or "own". Throws
// std::invalid_argument, naming `source` and the names that would do.
void choose_torch_threads(const std::string& name, const std::string& source);
// As chosen, or as FASTREG_TORCH_THREADS says; the first call throws if that is wrong.
std::string chosen_torch_threads();

}  // namespace fastreg
