// The pool and the floating-point state: each task runs once, callers do not disturb each other, a forked child works,
// and flush-to-zero that somebody switched on changes no bit and is still on afterwards.
#include "cpu/pool.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <atomic>
#include <cfenv>
#include <chrono>
#include <csignal>
#include <memory>
#include <thread>

#include "check.h"
#include "cpu/float_environment.h"
#include "large_calls.h"

namespace fastreg::test {
namespace {

// How often each of `count` tasks was run.
std::vector<int> runs_of_each(std::int64_t count, int threads) {
  std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
  run_tasks(
      [](void* context, std::int64_t index) {
        auto& all = *static_cast<std::vector<std::atomic<int>>*>(context);
        all[static_cast<std::size_t>(index)].fetch_add(1, std::memory_order_relaxed);
      },
      &runs, count, threads);
  return {runs.begin(), runs.end()};
}

// Waits for another thread, but not for ever.
template <class Condition>
void wait_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition() && std::chrono::steady_clock::now() < end) {
    std::this_thread::yield();
  }
}

#if defined(__x86_64__)
constexpr bool can_flush_to_zero = true;
constexpr std::uint64_t flush_to_zero = 0x8040;                // flush results, and take subnormal operands for zeros
std::uint64_t float_state() { return _mm_getcsr() & ~0x3fu; }  // without the sticky flags
void set_float_state(std::uint64_t state) { _mm_setcsr(static_cast<unsigned>(state)); }
#elif defined(__aarch64__)
constexpr bool can_flush_to_zero = true;
constexpr std::uint64_t flush_to_zero = std::uint64_t{1} << 24;
std::uint64_t float_state() {
  std::uint64_t state;
  asm volatile("mrs %0, fpcr" : "=r"(state));
  return state;
}
void set_float_state(std::uint64_t state) { asm volatile("msr fpcr, %0" : : "r"(state)); }
#else
constexpr bool can_flush_to_zero = false;
constexpr std::uint64_t flush_to_zero = 0;
std::uint64_t float_state() { return 0; }
void set_float_state(std::uint64_t) {}
#endif

}  // namespace

TEST(pool_runs_each_task_once) {
  for (const int threads : {1, 2, 3, 7}) {
    for (const std::int64_t count : {0, 1, 2, 3, 8, 1000}) {
      const std::vector<int> runs = runs_of_each(count, threads);
      CHECK(runs == std::vector<int>(static_cast<std::size_t>(count), 1), "threads", threads, "tasks", count);
    }
  }
}

// Two threads begin with the halves of the tasks, the caller with the first: with the same call again, each finds in
// its caches what it wrote.
TEST(pool_gives_each_thread_its_own_tasks_first) {
  struct Record {
    std::atomic<int> begun{0};
    std::atomic<std::thread::id> threads[4];
  };
  for (int i = 0; i < 20; ++i) {
    Record record;
    run_tasks(
        [](void* context, std::int64_t index) {
          auto& all = *static_cast<Record*>(context);
          all.threads[index] = std::this_thread::get_id();
          all.begun.fetch_add(1);
          wait_until([&] { return all.begun >= 2; });
        },
        &record, 4, 2);
    CHECK(record.begun == 4);
    CHECK(record.threads[0] == std::this_thread::get_id(), "call", i);
    CHECK(record.threads[2] != std::this_thread::get_id(), "call", i);
  }
}

#if defined(__linux__)
// Linux may wake a worker on its caller's processor even if another is idle.
TEST(pool_keeps_workers_off_the_processor_of_the_caller) {
  cpu_set_t before;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  if (CPU_COUNT(&before) < 2) {
    return;  // there is nowhere to go
  }
  runs_of_each(2, 2);  // hires the worker, which may run anywhere
  struct Record {
    std::atomic<int> begun{0};
    std::atomic<int> workers_processor{-1};
    std::thread::id caller = std::this_thread::get_id();
  };
  for (int i = 0; i < 100; ++i) {
    const int own = sched_getcpu();
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(own, &here);
    CHECK(sched_setaffinity(0, sizeof here, &here) == 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // both sleep, so the caller's processor is idle too
    Record record;
    run_tasks(
        [](void* context, std::int64_t) {
          auto& all = *static_cast<Record*>(context);
          if (std::this_thread::get_id() != all.caller) {
            all.workers_processor = sched_getcpu();
          }
          all.begun.fetch_add(1);
          wait_until([&] { return all.begun == 2; });
        },
        &record, 2, 2);
    CHECK(record.workers_processor != -1 && record.workers_processor != own, "call", i, "processor", own);
    sched_setaffinity(0, sizeof before, &before);
  }
}
#endif

#if defined(__linux__)
// The affinity that somebody else gives a worker stands, even where the worker could get off its caller's processor.
TEST(pool_leaves_workers_where_others_put_them) {
  cpu_set_t before;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  if (CPU_COUNT(&before) < 2) {
    return;
  }
  struct Record {
    std::atomic<int> begun{0};
    std::atomic<int> worker{0};
    cpu_set_t set;
    std::thread::id caller = std::this_thread::get_id();
  };
  const auto call = [] {
    auto record = std::make_unique<Record>();
    run_tasks(
        [](void* context, std::int64_t) {
          auto& all = *static_cast<Record*>(context);
          if (std::this_thread::get_id() != all.caller) {
            sched_getaffinity(0, sizeof all.set, &all.set);
            all.worker = static_cast<int>(gettid());
          }
          all.begun.fetch_add(1);
          wait_until([&] { return all.begun == 2; });
        },
        record.get(), 2, 2);
    return record;
  };
  const int worker = call()->worker;
  CHECK(worker != 0);
  // Until it sleeps: a worker that is placing itself at this moment would not see that somebody else does.
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  // Another set than it has placed itself on: given the same one again, nobody could tell.
  cpu_set_t placed;
  CHECK(sched_getaffinity(worker, sizeof placed, &placed) == 0);
  cpu_set_t here;
  for (int own = 0; own < CPU_SETSIZE; ++own) {
    CPU_ZERO(&here);
    CPU_SET(own, &here);
    if (CPU_ISSET(own, &before) && !CPU_EQUAL(&here, &placed)) {
      break;
    }
  }
  CHECK(sched_setaffinity(0, sizeof here, &here) == 0);
  CHECK(sched_setaffinity(worker, sizeof here, &here) == 0);
  for (int i = 0; i < 20; ++i) {
    run_tasks([](void*, std::int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); }, nullptr, 4, 2);
  }
  cpu_set_t after;
  CHECK(sched_getaffinity(worker, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&after, &here));
  sched_setaffinity(worker, sizeof before, &before);
  sched_setaffinity(0, sizeof before, &before);
}
#endif

// Signals of the process are for threads that its handlers know; faults are for whoever prints where they were.
TEST(pool_keeps_signals_from_workers) {
  sigset_t before;
  CHECK(pthread_sigmask(SIG_SETMASK, nullptr, &before) == 0);
  struct Record {
    std::atomic<int> begun{0};
    sigset_t mask;
    std::thread::id caller = std::this_thread::get_id();
  } record;
  sigemptyset(&record.mask);
  run_tasks(
      [](void* context, std::int64_t) {
        auto& all = *static_cast<Record*>(context);
        if (std::this_thread::get_id() != all.caller) {
          pthread_sigmask(SIG_SETMASK, nullptr, &all.mask);
        }
        all.begun.fetch_add(1);
        wait_until([&] { return all.begun == 2; });
      },
      &record, 2, 2);
  for (const int signal : {SIGINT, SIGTERM, SIGALRM, SIGPROF, SIGCHLD, SIGUSR1, SIGHUP}) {
    CHECK(sigismember(&record.mask, signal) == 1, "signal", signal);
  }
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    CHECK(sigismember(&record.mask, signal) == 0, "signal", signal);
  }
  sigset_t after;
  CHECK(pthread_sigmask(SIG_SETMASK, nullptr, &after) == 0);
  for (int signal = 1; signal < 32; ++signal) {
    CHECK(sigismember(&after, signal) == sigismember(&before, signal), "the caller's, signal", signal);
  }
}

TEST(pool_shares_brief_calls_in_close_succession_only) {
  bool some_were_shared = false;
  for (int i = 0; i < 1000; ++i) {
    some_were_shared |= BriefCall().is_worth_sharing();
  }
  CHECK(some_were_shared);
  // Of several pauses, since a worker that lost its processor while it watched still does when it gets it back.
  bool some_were_not = false;
  for (int i = 0; i < 10; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    some_were_not |= !BriefCall().is_worth_sharing();
  }
  CHECK(some_were_not, "after a pause");
}

TEST(pool_serves_several_callers) {
  std::vector<std::thread> callers;
  callers.reserve(4);
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([caller] {
      for (int i = 0; i < 200; ++i) {
        const std::int64_t count = 1 + (caller * 31 + i) % 50;
        CHECK(runs_of_each(count, 1 + i % 7) == std::vector<int>(static_cast<std::size_t>(count), 1));
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
}

TEST(pool_evaluates_for_several_callers) {
  const LargeCall call;
  const int before = get_num_threads();
  set_num_threads(3);
  std::vector<std::thread> callers;
  callers.reserve(3);
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&call] {
      for (int i = 0; i < 5; ++i) {
        CHECK(call.is_right());
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  set_num_threads(before);
}

TEST(pool_works_in_a_forked_child) {
  const LargeCall call;
  const int before = get_num_threads();
  set_num_threads(3);
  CHECK(succeeds_in_child([&] { return call.is_right(); }), "before the first use");
  CHECK(call.is_right());
  const auto child_and_grandchild = [&] {
    return call.is_right() && succeeds_in_child([&] { return call.is_right(); }) && call.is_right();
  };
  CHECK(succeeds_in_child(child_and_grandchild), "after use");
  CHECK(call.is_right());

  // While another thread is inside.
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) {
      CHECK(runs_of_each(20, 3) == std::vector<int>(20, 1));
    }
  });
  for (int i = 0; i < 20; ++i) {
    CHECK(succeeds_in_child([] { return runs_of_each(20, 3) == std::vector<int>(20, 1); }), "fork", i);
  }
  stop = true;
  busy.join();
  set_num_threads(before);
}

TEST(pool_refuses_wrong_numbers_of_threads) {
  const int before = get_num_threads();
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{max_threads} + 1, INT64_MAX}) {
    bool refused = false;
    try {
      set_num_threads(count);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused && get_num_threads() == before, count);
  }
}

// Run alone, this test has flush-to-zero on before the first worker is hired, which inherits it.
TEST(flush_to_zero_changes_nothing) {
  if (!can_flush_to_zero) {
    return;
  }
  // Subnormals only, so that flushing would leave nothing; their squares are subnormal in float64 too for f64.
  std::vector<std::vector<unsigned char>> weights;
  std::vector<std::vector<unsigned char>> expected_gradients;
  std::vector<double> expected_values;
  const oracle::Strengths strengths{0.5, 0.25};
  for (const DType dtype : floating_dtypes) {
    const std::size_t item = item_size(dtype);
    weights.emplace_back(300'007 * item);
    expected_gradients.emplace_back(300'007 * item);
    for (std::size_t i = 0; i < 300'007; ++i) {
      const std::uint64_t low = 1 + i % 61;
      std::memcpy(weights.back().data() + i * item, &low, item);
      oracle::gradient(dtype, &low, expected_gradients.back().data() + i * item, strengths, false);
    }
    expected_values.push_back(oracle::penalty(elements_of(weights.back().data(), dtype, 300'007), strengths));
    CHECK(expected_values.back() > 0.0);
  }

  const int threads_before = get_num_threads();
  set_num_threads(3);
  const std::uint64_t normal = float_state();
  const int rounding_before = std::fegetround();
  for (const int rounding : {FE_TONEAREST, FE_UPWARD, FE_TOWARDZERO}) {
    std::fesetround(rounding);
    set_float_state(float_state() | flush_to_zero);
    const std::uint64_t changed = float_state();
    std::vector<double> values(weights.size());
    std::vector<std::vector<unsigned char>> gradients = expected_gradients;
    bool restored = true;
    for (std::size_t i = 0; i < weights.size(); ++i) {
      std::fill(gradients[i].begin(), gradients[i].end(), static_cast<unsigned char>(0x11));
      const Item item{weights[i].data(), gradients[i].data(), 300'007, make_coefficients(0.5, 0.25, 1.0, 1.0),
                      nullptr,           floating_dtypes[i]};
      evaluate(&item, 1, output_value | output_gradient, &values[i]);
      restored &= float_state() == changed && std::fegetround() == rounding;
    }
    set_float_state(normal);
    std::fesetround(rounding_before);
    CHECK(restored, "rounding", rounding);
    for (std::size_t i = 0; i < weights.size(); ++i) {
      CHECK(oracle::same_value(values[i], expected_values[i]), name_of(floating_dtypes[i]), "rounding", rounding);
      CHECK(first_difference(gradients[i].data(), expected_gradients[i].data(), floating_dtypes[i], 300'007) == 300'007,
            name_of(floating_dtypes[i]), "rounding", rounding);
    }
  }
  set_num_threads(threads_before);
}

}  // namespace fastreg::test
