#include "pool.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
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
#endif
#if defined(__linux__)
#include <sched.h>
#endif

#include "float_environment.h"

namespace fastreg {
namespace {

// Shared by its caller and the workers that joined it. A worker may look at it after the caller has gone, when it finds
// no task left to claim; so it is counted, and only a claimed task touches the caller's context.
struct Job {
  Task task;
  void* context;
  std::int64_t count;
  int seats;  // how many workers may still join; guarded by the pool's mutex
  std::atomic<std::int64_t> next{0};
  std::atomic<std::int64_t> done{0};
  std::condition_variable all_done;

  bool has_unclaimed() const { return next.load(std::memory_order_relaxed) < count; }
  bool is_done() const { return done.load(std::memory_order_acquire) == count; }

  // Claims and runs tasks until none is left. True if the last one to finish was among them.
  bool work() {
    bool finished = false;
    while (has_unclaimed()) {
      const std::int64_t index = next.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) {
        break;
      }
      task(context, index);
      finished = done.fetch_add(1, std::memory_order_acq_rel) + 1 == count;
    }
    return finished;
  }
};

class Pool {
 public:
  void run(Task task, void* context, std::int64_t count, int helpers) {
    auto job = std::make_shared<Job>();
    job->task = task;
    job->context = context;
    job->count = count;
    job->seats = helpers;
    {
      std::scoped_lock lock(mutex_);
      hire(helpers);
      jobs_.push_back(job);
    }
    for (int i = 0; i < helpers; ++i) {
      wake_.notify_one();
    }
    job->work();
    wait_briefly(*job);
    std::unique_lock lock(mutex_);
    jobs_.erase(std::find(jobs_.begin(), jobs_.end(), job));
    job->all_done.wait(lock, [&] { return job->is_done(); });
  }

 private:
  // What is waited for runs now and is at most a task long, less than putting a thread to sleep and waking it.
  static void wait_briefly(const Job& job) {
    for (int i = 0; i < 2000 && !job.is_done(); ++i) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
  }

  void hire(int helpers) {
    while (workers_ < helpers) {
      try {
        std::thread(&Pool::serve, this).detach();
      } catch (const std::system_error&) {
        return;  // the system has no more threads: the caller and the workers there are do the work
      }
      ++workers_;
    }
  }

  void serve() {
    const FloatEnvironment environment;
    std::unique_lock lock(mutex_);
    for (;;) {
      std::shared_ptr<Job> job;
      wake_.wait(lock, [&] { return (job = join()) != nullptr; });
      lock.unlock();
      const bool finished = job->work();
      lock.lock();
      if (finished) {
        job->all_done.notify_one();
      }
    }
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
};

// Never destroyed: detached workers use it until the process ends.
std::atomic<Pool*> shared_pool{nullptr};

Pool& pool() {
  Pool* current = shared_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    Pool* fresh = new Pool;
    if (shared_pool.compare_exchange_strong(current, fresh, std::memory_order_acq_rel)) {
      current = fresh;
#if defined(__unix__) || defined(__APPLE__)
      // The child has none of the workers, and may have been forked while the mutex was held: it starts afresh, and the
      // parent's pool is left where it lies.
      static std::once_flag once;
      std::call_once(once, [] {
        pthread_atfork(nullptr, nullptr, [] { shared_pool.store(nullptr, std::memory_order_release); });
      });
#endif
    } else {
      delete fresh;
    }
  }
  return *current;
}

int count_processors() {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    return std::max(1, CPU_COUNT(&set));
  }
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

[[noreturn]] void refuse(const std::string& name, const std::string& was) {
  throw std::invalid_argument(name + " must be a whole number from 1 to " + std::to_string(max_threads) + ", not " +
                              was);
}

int initial_num_threads() {
  const char* text = std::getenv("FASTREG_NUM_THREADS");
  if (text == nullptr || *text == '\0') {
    return std::min(count_processors(), max_threads);
  }
  char* end = nullptr;
  errno = 0;
  const long long count = std::strtoll(text, &end, 10);
  if (errno != 0 || *end != '\0' || count < 1 || count > max_threads) {
    refuse("FASTREG_NUM_THREADS", std::string("'").append(text).append("'"));
  }
  return static_cast<int>(count);
}

std::atomic<int>& num_threads() {
  static std::atomic<int> count{initial_num_threads()};
  return count;
}

}  // namespace

int get_num_threads() { return num_threads().load(std::memory_order_relaxed); }

void set_num_threads(std::int64_t count) {
  if (count < 1 || count > max_threads) {
    refuse("n", std::to_string(count));
  }
  num_threads().store(static_cast<int>(count), std::memory_order_relaxed);
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
