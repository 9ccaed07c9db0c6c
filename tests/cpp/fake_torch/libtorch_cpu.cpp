// A libtorch_cpu.so with an OpenMP runtime of its own, made of locks alone: ThreadSanitizer sees what they order, which
// it cannot of a runtime that was not compiled with it.
//
// As GCC's: each calling thread has a team of its own, whose workers spin for a while after a region and then sleep; a
// region that is asked for fewer threads ends the others; and it is not there in a forked child.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Region = void (*)(void*);

std::atomic<int> regions{0};
std::atomic<int> workers_made{0};
std::atomic<int> spin_milliseconds{0};
std::atomic<int> threads_of_torch{3};
thread_local int threads_of_this_thread = 0;
thread_local int number = 0;
thread_local int depth = 0;

class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; ++i) {
      workers_.emplace_back([this, i] { serve(i); });
      ++workers_made;
    }
  }
  ~Team() {
    begin(nullptr, nullptr);
    for (std::thread& worker : workers_) {
      worker.join();
    }
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  void run(Region region, void* data) {
    begin(region, data);
    ++depth;
    region(data);
    --depth;
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait(lock, [&] { return running_ == 0; });
  }

 private:
  void begin(Region region, void* data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    region_ = region;
    data_ = data;
    running_ = size_ - 1;
    turn_.fetch_add(1);
    begun_.notify_all();
  }

  void serve(int own_number) {
    number = own_number;
    depth = 1;
    for (int seen = 0;; ++seen) {
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(spin_milliseconds.load());
      while (turn_.load() == seen && std::chrono::steady_clock::now() < end) {
      }
      Region region = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        begun_.wait(lock, [&] { return turn_.load() != seen; });
        region = region_;
      }
      if (region == nullptr) {
        return;
      }
      region(data_);
      const std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) {
        ended_.notify_one();
      }
    }
  }

  const int size_;
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable begun_;
  std::condition_variable ended_;
  std::atomic<int> turn_{0};
  Region region_ = nullptr;
  void* data_ = nullptr;
  int running_ = 0;
};

thread_local std::unique_ptr<Team> team_of_this_thread;

int threads() { return threads_of_this_thread != 0 ? threads_of_this_thread : threads_of_torch.load(); }

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

namespace at {
EXPORTED int get_num_threads();
int get_num_threads() { return threads(); }
}  // namespace at

extern "C" {

EXPORTED void omp_set_num_threads(int count) { threads_of_this_thread = count; }
EXPORTED int omp_get_thread_num() { return number; }
EXPORTED int omp_get_proc_bind() { return 0; }
EXPORTED int omp_get_level() { return depth; }

// NOLINTNEXTLINE(readability-identifier-naming): the name is GCC's.
EXPORTED void GOMP_parallel(Region region, void* data, unsigned asked, unsigned) {
  ++regions;
  const int size = asked != 0 ? static_cast<int>(asked) : threads();
  if (!team_of_this_thread || team_of_this_thread->size() != size) {
    team_of_this_thread = nullptr;
    team_of_this_thread = std::make_unique<Team>(size);
  }
  team_of_this_thread->run(region, data);
}

// For the tests.
EXPORTED int fake_regions() { return regions; }
EXPORTED int fake_workers_made() { return workers_made; }
EXPORTED void fake_spin(int milliseconds) { spin_milliseconds = milliseconds; }
EXPORTED void fake_threads(int count) { threads_of_torch = count; }
}
