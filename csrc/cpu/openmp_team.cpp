#include "openmp_team.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "pool.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <ctime>
#include <mutex>
#include <system_error>
#include <thread>

#include "signals.h"
#endif

namespace fastreg {
namespace {

#if defined(__linux__)

using ThreadNumber = pid_t;

ThreadNumber this_thread() {
  static thread_local const ThreadNumber number = gettid();
  return number;
}

// The time that a thread of this process has run for; negative where there is no such thread.
std::int64_t time_of(ThreadNumber thread) {
  // As clock_getcpuclockid has it for processes: Linux' number of a thread's clock.
  const auto clock = static_cast<clockid_t>(~static_cast<unsigned>(thread) << 3 | 6U);
  timespec time{};
  return clock_gettime(clock, &time) == 0 ? time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec : -1;
}

#else

using ThreadNumber = int;
ThreadNumber this_thread() { return 0; }
std::int64_t time_of(ThreadNumber) { return -1; }

#endif

// The first worker of the calling thread's team, as it was at the last run.
constexpr ThreadNumber not_known = 0;
constexpr ThreadNumber has_none = -1;
thread_local ThreadNumber known_worker = not_known;

}  // namespace

std::optional<bool> OpenMpTeam::is_awake() const {
  if (known_worker == has_none) {
    return false;
  }
  const std::int64_t before = known_worker == not_known ? -1 : time_of(known_worker);
  return before < 0 ? std::nullopt : std::optional<bool>(time_of(known_worker) > before);
}

void OpenMpTeam::run(Task task, void* context, std::int64_t count, int threads) const {
  struct Shared {
    Tasks tasks;
    int threads;
    int (*thread_number)();
    ThreadNumber worker;
  } shared{Tasks(task, context, count, threads), threads, runtime_.thread_number, has_none};
  runtime_.parallel(
      [](void* data) {
        auto& all = *static_cast<Shared*>(data);
        const int number = all.thread_number();
        if (number == 1) {
          all.worker = this_thread();
        }
        if (number < all.threads) {
          all.tasks.work(number);
        }
      },
      &shared, 0, 0);
  known_worker = shared.worker;
}

namespace {

constexpr const char* choices[] = {"own", "torch"};

bool means_torch(const std::string& name, const std::string& source) {
  if (name != choices[0] && name != choices[1]) {
    throw std::invalid_argument(source + " must be 'own' or 'torch', not '" + name + "'");
  }
  return name == choices[1];
}

std::atomic<bool>& torch_is_chosen() {
  static std::atomic<bool> chosen{[] {
    const char* name = std::getenv("FASTREG_TORCH_THREADS");
    return name == nullptr || *name == '\0' || means_torch(name, "FASTREG_TORCH_THREADS");
  }()};
  return chosen;
}

#if defined(__linux__)

// What was found in libtorch_cpu, once it is loaded.
struct Found {
  int (*get_num_threads)() = nullptr;
  const OpenMpTeam* team = nullptr;
};

// Empty where it is not loaded. That is asked at every large call, so only what was loaded since is looked at.
std::string path_of_libtorch() {
  static std::atomic<unsigned long long> loads_seen{0};
  struct Look {
    std::string path;
    unsigned long long loads;
  } look{{}, loads_seen.load(std::memory_order_relaxed)};
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto& [path, loads] = *static_cast<Look*>(data);
        if (info->dlpi_adds == loads) {
          return 1;
        }
        const char* slash = std::strrchr(info->dlpi_name, '/');
        const char* name = slash != nullptr ? slash + 1 : info->dlpi_name;
        if (std::strncmp(name, "libtorch_cpu.so", 15) != 0) {
          loads_seen.store(info->dlpi_adds, std::memory_order_relaxed);
          return 0;
        }
        path = info->dlpi_name;
        return 1;
      },
      &look);
  return look.path;
}

template <class Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

// True if torch asks this very runtime how many threads there are: that number is each thread's own, so one that ends
// at once may change it.
bool is_asked_by_torch(const OpenMpTeam::Runtime& runtime, int (*torch_get_num_threads)()) {
  bool is_asked = false;
  try {
    const SignalsBlocked blocked;
    std::thread([&] {
      const int other = torch_get_num_threads() + 1;
      runtime.set_num_threads(other);
      is_asked = torch_get_num_threads() == other;
    }).join();
  } catch (const std::system_error&) {
    return false;
  }
  return is_asked;
}

const OpenMpTeam* find_team(void* libtorch, int (*torch_get_num_threads)()) {
  for (void* library : {libtorch, RTLD_DEFAULT}) {
    OpenMpTeam::Runtime runtime{};
    if (find(library, "GOMP_parallel", runtime.parallel) &&
        find(library, "omp_get_thread_num", runtime.thread_number) && find(library, "omp_get_level", runtime.level) &&
        find(library, "omp_get_proc_bind", runtime.proc_bind) &&
        find(library, "omp_set_num_threads", runtime.set_num_threads) &&
        is_asked_by_torch(runtime, torch_get_num_threads)) {
      return new OpenMpTeam(runtime);
    }
  }
  return nullptr;
}

// A forked child has none of the team's threads, and GCC's runtime would wait for them for ever.
std::atomic<bool> is_forked{false};

// Held while libtorch is looked for. A fork waits for that, as the child would find it held by a thread that it has not
// got. Seen from the loading of this library on: inside of the mutex the registration could wait for a fork that waits
// for the mutex.
std::mutex looking;
bool register_at_forks() noexcept {
  return pthread_atfork([] { looking.lock(); }, [] { looking.unlock(); },
                        [] {
                          is_forked.store(true);
                          looking.unlock();
                        }) == 0;
}
const bool sees_forks = register_at_forks();

// Whether this process was forked before that could be seen: the flag PF_FORKNOEXEC of its first thread.
bool was_forked() {
  std::FILE* file = std::fopen("/proc/self/stat", "re");
  if (file == nullptr) {
    return false;
  }
  char text[512] = {};
  std::fread(text, 1, sizeof text - 1, file);
  std::fclose(file);
  const char* place = std::strrchr(text, ')');
  constexpr int fields_before_flags = 7;  // the name's end, the state, five numbers
  for (int i = 0; i < fields_before_flags && place != nullptr; ++i) {
    place = std::strchr(place + 1, ' ');
  }
  return place != nullptr && (std::strtoul(place, nullptr, 10) & 0x40U) != 0;
}

const Found* found() {
  static std::atomic<const Found*> known{nullptr};
  if (const Found* at_once = known.load(std::memory_order_acquire)) {
    return at_once;
  }
  const std::lock_guard<std::mutex> lock(looking);
  if (known.load(std::memory_order_relaxed) == nullptr) {
    const std::string path = path_of_libtorch();
    void* libtorch = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOLOAD | RTLD_LAZY);
    if (libtorch == nullptr) {
      return nullptr;  // it may be loaded later
    }
    if (!sees_forks || was_forked()) {
      is_forked.store(true);
    }
    Found* fresh = new Found;
    if (find(libtorch, "_ZN2at15get_num_threadsEv", fresh->get_num_threads)) {
      fresh->team = find_team(libtorch, fresh->get_num_threads);
    }
    known.store(fresh, std::memory_order_release);
  }
  return known.load(std::memory_order_relaxed);
}

#endif

}  // namespace

void choose_torch_threads(const std::string& name, const std::string& source) {
  torch_is_chosen().store(means_torch(name, source), std::memory_order_relaxed);
}

std::string chosen_torch_threads() { return choices[torch_is_chosen().load(std::memory_order_relaxed) ? 1 : 0]; }

TorchThreads torch_threads() {
#if defined(__linux__)
  const Found* torch = found();
  if (torch == nullptr) {
    return {max_threads, nullptr, "torch is not loaded"};
  }
  if (torch->get_num_threads == nullptr) {
    return {max_threads, nullptr, "this torch does not say how many threads it has"};
  }
  const int most = torch->get_num_threads();
  const auto own = [&](const char* reason) { return TorchThreads{most, nullptr, reason}; };
  if (!torch_is_chosen().load(std::memory_order_relaxed)) {
    return own("FASTREG_TORCH_THREADS is 'own'");
  }
  if (torch->team == nullptr) {
    return own("the OpenMP runtime that this torch uses is not found");
  }
  if (is_forked.load(std::memory_order_relaxed)) {
    return own("this process was forked, and has none of its parent's OpenMP threads");
  }
  if (torch->team->is_inside()) {
    return own("the call comes from inside an OpenMP region");
  }
  if (most > usable_processors() && !torch->team->is_bound()) {
    return own("torch has more threads than there are processors, and waits for all of them");
  }
  return {most, torch->team, ""};
#else
  return {max_threads, nullptr, "on this system torch's threads cannot be taken"};
#endif
}

}  // namespace fastreg
