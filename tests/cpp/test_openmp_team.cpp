// torch's OpenMP team, here that of fake_torch/libtorch_cpu.cpp: who takes the tasks, and that each is run once, with
// the same bits, for several callers at once.
#include "cpu/openmp_team.h"

#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/pool.h"
#include "cpu/sharing.h"
#include "large_calls.h"

namespace fastreg::test {
namespace {

// The library, which stays loaded, and what it has for tests.
struct FakeTorch {
  template <class Function>
  static Function* find(const char* name) {
    static void* library = dlopen(FASTREG_FAKE_TORCH, RTLD_NOW | RTLD_LOCAL);
    return library == nullptr ? nullptr : reinterpret_cast<Function*>(dlsym(library, name));
  }
  int (*regions)() = find<int()>("fake_regions");
  int (*workers_made)() = find<int()>("fake_workers_made");
  void (*spin)(int) = find<void(int)>("fake_spin");
  void (*threads)(int) = find<void(int)>("fake_threads");
  void (*parallel)(void (*)(void*), void*, unsigned,
                   unsigned) = find<void(void (*)(void*), void*, unsigned, unsigned)>("GOMP_parallel");
};

// Two threads, of torch as of ours, whatever the machine has.
class TwoThreads {
 public:
  TwoThreads() : before_(get_num_threads()) {
    set_num_threads(2);
    fake.threads(2);
  }
  ~TwoThreads() { set_num_threads(before_); }
  TwoThreads(const TwoThreads&) = delete;
  TwoThreads& operator=(const TwoThreads&) = delete;

  FakeTorch fake;

 private:
  int before_;
};

// A team is not taken that has more members than there are processors.
bool has_processors(int count) { return usable_processors() >= count; }

}  // namespace

TEST(team_runs_each_task_once) {
  const TwoThreads two;
  if (!has_processors(2)) {
    return;
  }
  const OpenMpTeam* team = torch_threads().team;
  CHECK(team != nullptr, torch_threads().reason);
  if (team == nullptr) {
    return;
  }
  for (const int threads : {2, 3, 7}) {
    for (const std::int64_t count : {1, 2, 3, 8, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      team->run([](void* all, std::int64_t index) { ++(*static_cast<decltype(runs)*>(all))[index]; }, &runs, count,
                threads);
      CHECK(std::vector<int>(runs.begin(), runs.end()) == std::vector<int>(static_cast<std::size_t>(count), 1),
            "threads", threads, "tasks", count);
    }
  }
}

TEST(team_takes_the_large_calls_of_torch) {
  const TwoThreads two;
  const LargeCall call;
  const bool is_offered = has_processors(2);
  // By a thread whose team is not known yet.
  const auto regions_of = [&](Owner owner) {
    const int before = two.fake.regions();
    std::thread([&] { CHECK(call.is_right(owner)); }).join();
    return two.fake.regions() - before;
  };
  CHECK(regions_of(Owner::torch) == (is_offered ? 1 : 0));
  choose_torch_threads("own", "name");
  CHECK(regions_of(Owner::torch) == 0, "chosen");
  choose_torch_threads("torch", "name");
  two.fake.threads(1);
  CHECK(regions_of(Owner::torch) == 0, "torch has one thread");
  two.fake.threads(usable_processors() + 1);
  CHECK(regions_of(Owner::torch) == 0, "more than there are processors");
  two.fake.threads(2);
  set_num_threads(1);
  CHECK(regions_of(Owner::torch) == 0, "one thread of ours");
  set_num_threads(2);
  CHECK(regions_of(Owner::torch) == (is_offered ? 1 : 0), "as before");
}

// The numbers of threads that run tasks: ours, though all members are called, and the team stays as it was.
TEST(team_lets_so_many_members_work) {
  const TwoThreads two;
  if (!has_processors(3)) {
    two.fake.threads(3);
    CHECK(torch_threads().team == nullptr);
  }
  two.fake.threads(2);
  if (!has_processors(2)) {
    return;
  }
  const OpenMpTeam* team = torch_threads().team;
  CHECK(team != nullptr);
  struct Record {
    std::mutex mutex;
    std::set<std::thread::id> threads;
  };
  // The fake's team has the size that it is told, whatever torch_threads() would say of it.
  two.fake.threads(5);
  const int made = two.fake.workers_made();
  for (const int threads : {4, 2, 1, 4}) {
    Record record;
    team->run(
        [](void* context, std::int64_t) {
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          auto& all = *static_cast<Record*>(context);
          const std::lock_guard<std::mutex> lock(all.mutex);
          all.threads.insert(std::this_thread::get_id());
        },
        &record, 40, threads);
    CHECK(record.threads.size() == static_cast<std::size_t>(threads), threads);
  }
  CHECK(two.fake.workers_made() - made == 4, "workers ended and made again");
}

// Calls go to the team while its workers spin, and to our pool when they sleep, whose ever the arrays are.
TEST(team_takes_calls_while_it_is_awake) {
  const TwoThreads two;
  if (!has_processors(2)) {
    return;
  }
  const LargeCall call;
  const LargeCall brief(70'000);
  const auto regions_of = [&](const LargeCall& one, Owner owner) {
    const int before = two.fake.regions();
    CHECK(one.is_right(owner));
    return two.fake.regions() - before;
  };
  std::thread([&] {
    CHECK(regions_of(call, Owner::other) == 0, "a thread that has shown no tensor of torch makes no team");
    two.fake.spin(2000);
    CHECK(regions_of(brief, Owner::torch) == 1, "not known yet");
    // A worker that spins may be waiting for a processor at the moment of a call, even for the caller's, as long as
    // others are busy.
    const auto is_taken_at_times = [&](const LargeCall& one, Owner owner) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
      while (std::chrono::steady_clock::now() < end) {
        if (regions_of(one, owner) == 1) {
          return true;
        }
        two.fake.parallel([](void*) {}, nullptr, 0, 0);  // its workers spin again
      }
      return false;
    };
    CHECK(is_taken_at_times(call, Owner::other), "awake");
    CHECK(is_taken_at_times(brief, Owner::other), "awake");
    CHECK(is_taken_at_times(brief, Owner::torch), "awake");
    CHECK(is_taken_at_times(call, Owner::torch), "awake");
    two.fake.spin(0);
    two.fake.parallel([](void*) {}, nullptr, 0, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    CHECK(regions_of(call, Owner::other) == 0, "asleep");
    CHECK(regions_of(brief, Owner::other) == 0, "asleep");
    CHECK(regions_of(brief, Owner::torch) == 0, "asleep");
    CHECK(regions_of(call, Owner::torch) == 0, "asleep");
  }).join();
}

TEST(team_is_left_alone_inside_a_region) {
  const TwoThreads two;
  const LargeCall call;
  const int before = two.fake.regions();
  struct Inside {
    const LargeCall* call;
    std::atomic<int> right{0};
  } inside{&call};
  two.fake.parallel(
      [](void* data) {
        auto& all = *static_cast<Inside*>(data);
        CHECK(torch_threads().team == nullptr);
        all.right += all.call->is_right(Owner::torch) ? 1 : 0;
      },
      &inside, 0, 0);
  CHECK(inside.right == 2);
  CHECK(two.fake.regions() == before + 1);
}

TEST(team_serves_several_callers) {
  const TwoThreads two;
  const LargeCall call;
  std::vector<std::thread> callers;
  callers.reserve(4);
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < 4; ++i) {
        CHECK(call.is_right((caller + i) % 2 == 0 ? Owner::torch : Owner::other));
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
}

TEST(team_is_not_for_a_forked_child) {
  const TwoThreads two;
  const LargeCall call;
  CHECK(call.is_right(Owner::torch));
  const auto is_right = [&] {
    return torch_threads().team == nullptr && call.is_right(Owner::torch) && call.is_right(Owner::other);
  };
  CHECK(succeeds_in_child(is_right));
  std::thread([&] { CHECK(succeeds_in_child(is_right), "from a thread"); }).join();
  CHECK(call.is_right(Owner::torch));
}

TEST(team_refuses_wrong_names) {
  for (const char* name : {"", "ours", "Torch"}) {
    bool refused = false;
    try {
      choose_torch_threads(name, "name");
    } catch (const std::invalid_argument& error) {
      refused = std::string(error.what()) == std::string("name must be 'own' or 'torch', not '") + name + "'";
    }
    CHECK(refused && chosen_torch_threads() == "torch", name);
  }
}

}  // namespace fastreg::test
