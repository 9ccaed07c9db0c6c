// How a call's chunks are shared among threads: how many threads it is worth, whose, and how long a task is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../owner.h"
#include "openmp_team.h"
#include "policy.h"
#include "pool.h"
#include "processor.h"

namespace fastreg {

// A task is shorter than it may be where there would be few of them, so that all threads are busy to the end.
constexpr std::int64_t tasks_per_thread = 8;

inline std::int64_t chunks_per_task(std::int64_t chunks, int threads) {
  return std::clamp<std::int64_t>(chunks / (threads * tasks_per_thread), 1, policy().policy->most_chunks_per_task);
}

// The threads of a call, its caller among them.
struct Crew {
  int threads = 1;
  const OpenMpTeam* team = nullptr;  // null: our pool's
};

// Whether torch's team takes a call's tasks: if it is awake, whose ever the arrays are. A team that sleeps is woken
// late, up to milliseconds where the system wakes a worker on the processor of its caller, torch's own operations too.
// A thread's team is not known before the first run: one that has shown no tensor of torch does not make a team for
// that, but the main thread, which most likely has it.
inline bool is_for_team(const OpenMpTeam& team, Owner owner, bool is_worth_waking) {
  return team.is_awake().value_or(owner == Owner::torch || (is_worth_waking && is_main_thread()));
}

inline Crew crew_for(Owner owner, bool is_worth_waking) {
  const int threads = get_num_threads();
  if (threads == 1) {
    return {};
  }
  const TorchThreads torchs = torch_threads();
  const Crew own{owner == Owner::torch ? std::min(threads, torchs.most) : threads};
  const bool has_team = own.threads > 1 && torchs.team != nullptr && torchs.most >= own.threads;
  return has_team && is_for_team(*torchs.team, owner, is_worth_waking) ? Crew{own.threads, torchs.team} : own;
}

inline void run_tasks(Task task, void* context, std::int64_t count, const Crew& crew) {
  if (crew.team != nullptr && crew.threads > 1 && count > 1) {
    crew.team->run(task, context, count, crew.threads);
  } else {
    run_tasks(task, context, count, crew.threads);
  }
}

// Runs body(crew) with as many threads as a call of so many elements is worth by these rules; whether it writes says
// that it moves more than one array.
template <class Body>
void on_threads(std::int64_t elements, Owner owner, const Policy& rules, bool writes, Body body) {
  if (!rules.is_worth_sharing(elements, writes)) {
    body(Crew{});
    return;
  }
  const bool is_worth_waking = elements >= rules.elements_worth_waking;
  const Crew crew = crew_for(owner, is_worth_waking);
  if (crew.threads == 1 || crew.team != nullptr || is_worth_waking) {
    body(crew);
  } else {
    const BriefCall brief;
    body(brief.is_worth_sharing() ? crew : Crew{});
  }
}

}  // namespace fastreg
