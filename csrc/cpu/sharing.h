// How a call's chunks are shared among threads: how many threads it is worth, and how long a task is.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pool.h"

namespace fastreg {

// A task is a run of at most this many chunks: 64 Ki elements amortise claiming. It is shorter where there would be few
// of them, so that all threads are busy to the end.
constexpr std::int64_t most_chunks_per_task = 16;
constexpr std::int64_t tasks_per_thread = 8;
// Waking a sleeping thread took 30 to 80 us where this was measured, so that two threads draw level with one at this
// many elements, of whatever type: in the caches the float64 additions are the limit, and they are the same for all.
constexpr std::int64_t elements_worth_waking = std::int64_t{1} << 18;
// A thread that is awake takes its part within 3 us.
constexpr std::int64_t elements_worth_sharing = std::int64_t{1} << 16;

inline std::int64_t chunks_per_task(std::int64_t chunks, int threads) {
  return std::clamp<std::int64_t>(chunks / (threads * tasks_per_thread), 1, most_chunks_per_task);
}

// Runs body(threads) with as many threads as a call of so many elements is worth.
template <class Body>
void on_threads(std::int64_t elements, Body body) {
  const int threads = elements < elements_worth_sharing ? 1 : get_num_threads();
  if (threads == 1 || elements >= elements_worth_waking) {
    body(threads);
  } else {
    const BriefCall brief;
    body(brief.is_worth_sharing() ? threads : 1);
  }
}

}  // namespace fastreg
