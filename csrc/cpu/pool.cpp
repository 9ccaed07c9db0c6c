#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include "float_environment.h"
#include "processor.h"
#include "quota.h"
#include "signals.h"

namespace fastreg {
namespace {

// Workers watch for further calls for this long, and only where the call before had come sooner than that.
constexpr std::chrono::nanoseconds longest_watch = std::chrono::microseconds(50);
// Brief calls are in close succession when so many have come with gaps no longer than this.
constexpr std::chrono::nanoseconds close_gap = std::chrono::microseconds(25);
constexpr int close_succession = 4;

using Clock = std::chrono::steady_clock;

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The pool's mutex is held for some ten instructions: to sleep for it would take a hundred times as long, and make the
// one who holds it wake the sleeper.
using Lock = std::unique_lock<std::mutex>;
void take(Lock& lock) {
  for (int i = 0; i < 100; ++i) {
    if (lock.try_lock()) {
      return;
    }
    relax();
  }
  lock.lock();
}

// Shared by its caller and the workers that joined it. A worker may look at it after the caller has gone, when it finds
// no task left to claim; so it is counted.
class Job {
 public:
  Job(Task task, void* context, std::int64_t count, int helpers)
      : seats(helpers), tasks_(task, context, count, helpers + 1), helpers_(helpers) {}

  bool has_unclaimed() const { return tasks_.has_unclaimed(); }
  bool is_done() const { return tasks_.is_done(); }

  // The caller's segment is the first one, which no worker has. True if the last task to finish was among them.
  bool work_as_caller() { return tasks_.work(0); }
  bool work_as_worker(int number) { return tasks_.work(1 + number % helpers_); }

  int seats;  // how many workers may still join; guarded by the pool's mutex
  std::condition_variable all_done;

 private:
  Tasks tasks_;
  int helpers_;
};

class Pool {
 public:
  bool has_watching_workers() const { return watching_.load(std::memory_order_relaxed) > 0; }

  void run(Task task, void* context, std::int64_t count, int helpers) {
    const auto job = std::make_shared<Job>(task, context, count, helpers);
    Lock lock(mutex_, std::defer_lock);
    take(lock);
    hire(helpers);
    jobs_.push_back(job);
    posted_.fetch_add(1, std::memory_order_relaxed);
    last_post_ = Clock::now();
    last_caller_processor_ = current_processor();
    lock.unlock();
    for (int i = 0; i < helpers; ++i) {
      wake_.notify_one();
    }
    job->work_as_caller();
    wait_briefly(*job);
    take(lock);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    job->all_done.wait(lock, [&] { return job->is_done(); });
  }

 private:
  // What is waited for runs now and is at most a task long, less than putting a thread to sleep and waking it.
  static void wait_briefly(const Job& job) {
    for (int i = 0; i < 2000 && !job.is_done(); ++i) {
      relax();
    }
  }

  void hire(int helpers) {
    if (workers_ >= helpers) {
      return;
    }
    const SignalsBlocked blocked;
    while (workers_ < helpers) {
      try {
        std::thread(&Pool::serve, this, workers_).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more threads: the caller and the workers there are do the work
      }
      ++workers_;
    }
  }

  void serve(int number) {
    const FloatEnvironment environment;
    Processors processors;
    bool watches = false;
    Lock lock(mutex_);
    for (;;) {
      if (const std::shared_ptr<Job> job = join()) {
        const int caller_processor = last_caller_processor_;
        lock.unlock();
        processors.leave(caller_processor);
        const bool finished = job->work_as_worker(number);
        take(lock);
        if (finished) {
          job->all_done.notify_one();
        }
        continue;
      }
      const std::int64_t seen = posted_.load(std::memory_order_relaxed);
      const Clock::time_point idle_since = Clock::now();
      if (watches) {
        const int caller_processor = last_caller_processor_;
        lock.unlock();
        processors.leave(caller_processor);
        watch(seen, idle_since + longest_watch);
        take(lock);
      }
      wake_.wait(lock, [&] { return posted_.load(std::memory_order_relaxed) != seen; });
      // Even if that job is done by now: the next one will come as soon.
      watches = last_post_ - idle_since < longest_watch;
    }
  }

  // Waits awake until another job than the `seen` is posted.
  void watch(std::int64_t seen, Clock::time_point end) {
    watching_.fetch_add(1, std::memory_order_relaxed);
    while (posted_.load(std::memory_order_relaxed) == seen && Clock::now() < end) {
      relax();
    }
    watching_.fetch_sub(1, std::memory_order_relaxed);
  }

  std::shared_ptr<Job> join() {
    for (const auto& job : jobs_) {
      if (job->seats > 0 && job->has_unclaimed()) {
        --job->seats;
        return job;
      }
    }
    return nullptr;
  }

  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::shared_ptr<Job>> jobs_;
  int workers_ = 0;
  std::atomic<std::int64_t> posted_{0};  // jobs; written with the mutex
  Clock::time_point last_post_;
  int last_caller_processor_ = -1;
  std::atomic<int> watching_{0};  // workers
};

// Never destroyed: detached workers use it until the process ends.
std::atomic<Pool*> shared_pool{nullptr};

#if defined(__unix__) || defined(__APPLE__)
// The child has none of the workers, and may have been forked while the mutex was held: it starts afresh, and the
// parent's pool is left where it lies. Seen to from the loading of this library on, since a fork may come just after
// the first call has made the pool.
[[maybe_unused]] const int forks_are_seen =
    pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr, std::memory_order_release); });
#endif

Pool& pool() {
  Pool* current = shared_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (shared_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) {
      current = fresh;
    } else {
      delete fresh;
    }
  }
  return *current;
}

int count_processors() {
  int count = 0;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(getpid(), sizeof set, &set) == 0) {
    count = CPU_COUNT(&set);
  }
#endif
  if (count == 0) {
    count = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }
  const int by_quota = processors_by_quota();
  return std::min({count, by_quota > 0 ? by_quota : count, max_threads});
}

[[noreturn]] void refuse(const std::string& name, const std::string& was) {
  throw std::invalid_argument(name + " must be a whole number from 1 to " + std::to_string(max_threads) + ", not " +
                              was);
}

// FASTREG_NUM_THREADS; 0 where it is not set.
int threads_of_environment() {
  const char* text = std::getenv("FASTREG_NUM_THREADS");
  if (text == nullptr || *text == '\0') {
    return 0;
  }
  char* end = nullptr;
  errno = 0;
  const long long count = std::strtoll(text, &end, 10);
  if (errno != 0 || *end != '\0' || count < 1 || count > max_threads) {
    refuse("FASTREG_NUM_THREADS", std::string("'").append(text).append("'"));
  }
  return static_cast<int>(count);
}

// As they were found at most this long ago.
constexpr std::chrono::nanoseconds processors_stand = std::chrono::seconds(1);

// What the user wants; 0 for as many as there are processors.
std::atomic<int>& wanted_threads() {
  static std::atomic<int> count{threads_of_environment()};
  return count;
}

// The brief calls so far, of all threads; when they race, a hint is lost and nothing else.
std::atomic<Clock::rep> last_brief_end{0};
std::atomic<int> brief_calls_in_succession{0};

}  // namespace

BriefCall::BriefCall() {
  const Clock::duration gap =
      Clock::now().time_since_epoch() - Clock::duration(last_brief_end.load(std::memory_order_relaxed));
  const int before = brief_calls_in_succession.load(std::memory_order_relaxed);
  const int calls = gap > close_gap ? 0 : std::min(before + 1, close_succession);
  brief_calls_in_succession.store(calls, std::memory_order_relaxed);
  is_worth_sharing_ = calls == close_succession || pool().has_watching_workers();
}

BriefCall::~BriefCall() { last_brief_end.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed); }

int usable_processors() {
  static std::atomic<int> count{count_processors()};
  static std::atomic<Clock::rep> counted{Clock::now().time_since_epoch().count()};
  const Clock::rep now = Clock::now().time_since_epoch().count();
  Clock::rep before = counted.load(std::memory_order_relaxed);
  if (Clock::duration(now - before) > processors_stand &&
      counted.compare_exchange_strong(before, now, std::memory_order_relaxed)) {
    count.store(count_processors(), std::memory_order_relaxed);
  }
  return count.load(std::memory_order_relaxed);
}

int get_num_threads() {
  const int wanted = wanted_threads().load(std::memory_order_relaxed);
  return wanted != 0 ? wanted : usable_processors();
}

void set_num_threads(std::int64_t count) {
  if (count < 1 || count > max_threads) {
    refuse("n", std::to_string(count));
  }
  wanted_threads().store(static_cast<int>(count), std::memory_order_relaxed);
}

void run_tasks(Task task, void* context, std::int64_t count, int threads) {
  const int helpers = static_cast<int>(std::min<std::int64_t>(threads, count)) - 1;
  if (helpers <= 0) {
    for (std::int64_t i = 0; i < count; ++i) {
      task(context, i);
    }
    return;
  }
  pool().run(task, context, count, helpers);
}

}  // namespace fastreg
