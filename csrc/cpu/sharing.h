// How a call's chunks are shared among threads: how many threads it is worth, and how long a task is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "policy.h"
#include "pool.h"

namespace fastreg {

// A task is shorter than it may be where there would be few of them, so that all threads are busy to the end.
constexpr std::int64_t tasks_per_thread = 8;

inline std::int64_t chunks_per_task(std::int64_t chunks, int threads) {
  return std::clamp<std::int64_t>(chunks / (threads * tasks_per_thread), 1, policy().policy->most_chunks_per_task);
}

// Runs body(threads) with as many threads as a call of so many elements is worth.
template <class Body>
void on_threads(std::int64_t elements, Body body) {
  const Policy& rules = *policy().policy;
  const int threads = elements < rules.elements_worth_sharing ? 1 : get_num_threads();
  if (threads == 1 || elements >= rules.elements_worth_waking) {
    body(threads);
  } else {
    const BriefCall brief;
    body(brief.is_worth_sharing() ? threads : 1);
  }
}

}  // namespace fastreg
