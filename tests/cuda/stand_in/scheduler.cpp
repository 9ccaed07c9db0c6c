// Compiled without -fsanitize, whatever the rest is compiled with: what is written here are the fibers' registers, so
// to speak, and no memory of the program's. The sanitizers are told of fibers by their interfaces.
//
//   STAND_IN_ASAN  the program runs under AddressSanitizer
//   STAND_IN_TSAN  the program runs under ThreadSanitizer: each CUDA thread is a thread to it, and only barriers,
//                  fences with atomics, and launches order them
#include "scheduler.h"

#include <ucontext.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <vector>

#include "device_language.h"
#undef threadIdx
#undef blockIdx
#undef gridDim
#undef blockDim

#ifdef STAND_IN_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef STAND_IN_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace stand_in {

uint3 thread_index;
uint3 block_index;
uint3 grid_size;
uint3 block_size;

namespace {

constexpr std::size_t stack_bytes = 256 * 1024;
constexpr unsigned most_threads = 1024;
constexpr int lanes = 32;

enum class State { unused, ready, at_barrier, at_exchange, done };

struct Fiber {
  ucontext_t context;
  char* stack;
  State state;
  unsigned index;
  Place place;
  // What ThreadSanitizer must be told when the thread goes on, and the last atomic that a fence may complete.
  const void* last_atomic;
  bool has_fenced;
#ifdef STAND_IN_ASAN
  void* fake_stack;
#endif
#ifdef STAND_IN_TSAN
  void* sanitizer_fiber;
#endif
};

// What the lanes of a warp do together.
struct Meeting {
  unsigned mask;
  unsigned arrived;
  Place place;
  // Two sets, used in turn: a lane may be at the next meeting, though not at the one after, while another has not read
  // yet what was offered at this one.
  std::uint64_t offers[2][lanes];
  unsigned turn;
};

struct SharedArray {
  const void* tag;
  void* memory;
};

std::uint64_t random_state = 1;

ucontext_t host;
#ifdef STAND_IN_ASAN
void* host_fake_stack;
const void* host_stack;
std::size_t host_stack_bytes;
#endif
#ifdef STAND_IN_TSAN
void* host_sanitizer_fiber;
#endif

// Fibers outlive blocks, since ThreadSanitizer takes long to make one. Two sets, used in turn, so that a thread of one
// block is not the same thread to it in the next.
Fiber* pools[2];
Fiber* fibers;
Fiber* running;
unsigned ready[most_threads];
unsigned ready_count;
unsigned barrier_count;
unsigned barrier_turn;
unsigned done_count;
Meeting meetings[most_threads / lanes];
std::vector<SharedArray> shared_arrays;
const std::function<void()>* body;
std::string refusal;
// Two, so that the end of one block does not order it before the start of the next.
char start_token;
char end_token;
// One for each block, so that one block's barriers do not order it before another block. Only addresses are used.
struct BlockTokens {
  // Two each, used in turn: who is late at one barrier must not learn what was done before the next.
  char barriers[2];
  char warps[most_threads / lanes][2];
  char shared;
};
BlockTokens block_tokens[4096];
unsigned blocks_run;
BlockTokens* tokens;

void acquire([[maybe_unused]] const void* token) {
#ifdef STAND_IN_TSAN
  __tsan_acquire(const_cast<void*>(token));
#endif
}

void release([[maybe_unused]] const void* token) {
#ifdef STAND_IN_TSAN
  __tsan_release(const_cast<void*>(token));
#endif
}

std::string text(Place place) {
  const char* name = std::strrchr(place.file, '/');
  return std::string(name != nullptr ? name + 1 : place.file) + ":" + std::to_string(place.line);
}

void refuse(const std::string& why) {
  if (refusal.empty()) {
    refusal = why + " (block " + std::to_string(block_index.x) + ")";
  }
}

// From a fiber to the scheduler.
void leave() {
  Fiber& self = *running;
#ifdef STAND_IN_TSAN
  __tsan_switch_to_fiber(host_sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef STAND_IN_ASAN
  __sanitizer_start_switch_fiber(&self.fake_stack, host_stack, host_stack_bytes);
#endif
  swapcontext(&self.context, &host);
#ifdef STAND_IN_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, &host_stack, &host_stack_bytes);
#endif
}

void fiber_main() {
#ifdef STAND_IN_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &host_stack, &host_stack_bytes);
#endif
  for (;;) {
    acquire(&start_token);
    (*body)();
    release(&end_token);
    running->state = State::done;
    ++done_count;
    leave();
  }
}

void enter(Fiber& fiber) {
  running = &fiber;
  thread_index = {fiber.index, 0, 0};
#ifdef STAND_IN_TSAN
  __tsan_switch_to_fiber(fiber.sanitizer_fiber, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef STAND_IN_ASAN
  __sanitizer_start_switch_fiber(&host_fake_stack, fiber.stack, stack_bytes);
#endif
  swapcontext(&host, &fiber.context);
#ifdef STAND_IN_ASAN
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.state = State::done;
}

Fiber& fiber_at(unsigned index) {
  Fiber& fiber = fibers[index];
  if (fiber.state == State::unused) {
    fiber.stack = static_cast<char*>(std::malloc(stack_bytes));
    fiber.index = index;
#ifdef STAND_IN_TSAN
    fiber.sanitizer_fiber = __tsan_create_fiber(0);
#endif
    prepare(fiber);
  }
  return fiber;
}

void make_ready(unsigned index) {
  fibers[index].state = State::ready;
  ready[ready_count++] = index;
}

// Nothing can go on, and not all are done.
void explain_deadlock(unsigned threads) {
  int waiting = -1;
  int left = -1;
  for (unsigned i = 0; i < threads; ++i) {
    if (fibers[i].state == State::at_exchange) {
      const Meeting& meeting = meetings[i / lanes];
      for (unsigned lane = 0; lane < lanes; ++lane) {
        const unsigned other = i / lanes * lanes + lane;
        if ((meeting.mask >> lane & 1) != 0 && (meeting.arrived >> lane & 1) == 0) {
          refuse("divergent shuffle or vote: thread " + std::to_string(i) + " waits at " + text(fibers[i].place) +
                 " for thread " + std::to_string(other) +
                 (other >= threads                     ? ", which does not exist"
                  : fibers[other].state == State::done ? ", which has left the kernel"
                                                       : ", which waits at " + text(fibers[other].place)));
          return;
        }
      }
    }
    if (fibers[i].state == State::at_barrier) {
      waiting = static_cast<int>(i);
    } else if (fibers[i].state == State::done) {
      left = static_cast<int>(i);
    }
  }
  refuse("divergent __syncthreads: thread " + std::to_string(waiting) + " waits at " + text(fibers[waiting].place) +
         ", thread " + std::to_string(left) + " has left the kernel");
}

void run_block(unsigned threads) {
  tokens = &block_tokens[blocks_run++ % std::size(block_tokens)];
  ready_count = barrier_count = done_count = 0;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fiber_at(i);
    fiber.last_atomic = nullptr;
    fiber.has_fenced = false;
    make_ready(i);
  }
  for (Meeting& meeting : meetings) {
    meeting.arrived = 0;
  }
  while (refusal.empty() && done_count < threads) {
    if (ready_count == 0) {
      explain_deadlock(threads);
      break;
    }
    const auto choice = static_cast<unsigned>(random_number() % ready_count);
    const unsigned index = ready[choice];
    ready[choice] = ready[--ready_count];
    enter(fibers[index]);
    if (barrier_count == threads) {
      barrier_count = 0;
      barrier_turn ^= 1;
      for (unsigned i = 0; i < threads; ++i) {
        make_ready(i);
      }
    }
  }
  if (!refusal.empty()) {
    for (unsigned i = 0; i < threads; ++i) {
      prepare(fibers[i]);  // what they were doing is given up
    }
  }
  acquire(&end_token);
  for (const SharedArray& array : shared_arrays) {
    std::free(array.memory);
  }
  shared_arrays.clear();
}

// Waits until all lanes of the mask are here, and gives what they have offered.
const std::uint64_t* meet(unsigned mask, std::uint64_t offer, Place place) {
  Fiber& self = *running;
  Meeting& meeting = meetings[self.index / lanes];
  const unsigned lane = self.index % lanes;
  if ((mask >> lane & 1) == 0) {
    refuse("shuffle or vote at " + text(place) + ": thread " + std::to_string(self.index) + " is not in its own mask");
    leave();
  }
  if (meeting.arrived == 0) {
    meeting.mask = mask;
    meeting.place = place;
  } else if (meeting.mask != mask || meeting.place.line != place.line ||
             std::strcmp(meeting.place.file, place.file) != 0) {
    refuse("divergent shuffle or vote: thread " + std::to_string(self.index) + " is at " + text(place) +
           ", others of its warp at " + text(meeting.place));
    leave();
  }
  meeting.arrived |= 1u << lane;
  const std::uint64_t* offers = meeting.offers[meeting.turn];
  meeting.offers[meeting.turn][lane] = offer;
  self.place = place;
  if (meeting.arrived == meeting.mask) {
    meeting.arrived = 0;
    meeting.turn ^= 1;
    for (unsigned other = 0; other < lanes; ++other) {
      if ((mask >> other & 1) != 0) {
        make_ready(self.index / lanes * lanes + other);
      }
    }
  } else {
    self.state = State::at_exchange;
  }
  leave();  // the last one too, so that any lane may be the first to go on
  return offers;
}

// The sanitizers have better words for it.
#if !defined(STAND_IN_ASAN) && !defined(STAND_IN_TSAN)
void tell_illegal_address(int) {
  char text[100];
  const int length = std::snprintf(text, sizeof text, "illegal address in a kernel (block %u, thread %u)\n",
                                   block_index.x, thread_index.x);
  [[maybe_unused]] const auto written = write(STDERR_FILENO, text, static_cast<std::size_t>(length));
  _exit(1);
}

class IllegalAddressHandler {
 public:
  IllegalAddressHandler() {
    for (std::size_t i = 0; i < std::size(signals); ++i) {
      before_[i] = std::signal(signals[i], tell_illegal_address);
    }
  }
  ~IllegalAddressHandler() {
    for (std::size_t i = 0; i < std::size(signals); ++i) {
      std::signal(signals[i], before_[i]);
    }
  }
  IllegalAddressHandler(const IllegalAddressHandler&) = delete;
  IllegalAddressHandler& operator=(const IllegalAddressHandler&) = delete;

 private:
  static constexpr int signals[] = {SIGSEGV, SIGBUS};
  void (*before_[2])(int);
};
#else
struct IllegalAddressHandler {
  IllegalAddressHandler() {}
};
#endif

void yield() {
  make_ready(running->index);
  leave();
}

}  // namespace

void set_seed(std::uint64_t seed) {
  random_state = seed * 2862933555777941757u + 3037000493u;
  for (int i = 0; i < 4; ++i) {
    random_number();  // seeds that are alike begin alike
  }
}

std::uint64_t random_number() {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (random_state >> 33) ^ (random_state >> 17 & 0xffff);
}

std::string run_grid(unsigned blocks, unsigned threads, const std::function<void()>& thread) {
#ifdef STAND_IN_TSAN
  host_sanitizer_fiber = __tsan_get_current_fiber();
#endif
  const IllegalAddressHandler handler;
  refusal.clear();
  body = &thread;
  grid_size = {blocks, 1, 1};
  block_size = {threads, 1, 1};
  release(&start_token);
  std::vector<unsigned> order(blocks);
  for (unsigned b = 0; b < blocks; ++b) {
    order[b] = b;
    const auto other = static_cast<unsigned>(random_number() % (b + 1));
    std::swap(order[b], order[other]);
  }
  for (unsigned b = 0; b < blocks && refusal.empty(); ++b) {
    Fiber*& pool = pools[b % 2];
    if (pool == nullptr) {
      pool = static_cast<Fiber*>(std::calloc(most_threads, sizeof(Fiber)));
    }
    fibers = pool;
    block_index = {order[b], 0, 0};
    run_block(threads);
  }
  return refusal;
}

void barrier(Place place) {
  Fiber& self = *running;
  if (barrier_count != 0) {
    for (unsigned i = 0; i < block_size.x; ++i) {
      const Fiber& other = fibers[i];
      if (other.state == State::at_barrier) {
        if (other.place.line != place.line || std::strcmp(other.place.file, place.file) != 0) {
          refuse("divergent __syncthreads: thread " + std::to_string(self.index) + " is at " + text(place) +
                 ", thread " + std::to_string(i) + " at " + text(other.place));
          leave();
        }
        break;
      }
    }
  }
  self.place = place;
  self.state = State::at_barrier;
  ++barrier_count;
  const char* token = &tokens->barriers[barrier_turn];
  release(token);
  leave();
  acquire(token);
}

void warp_barrier(unsigned mask, Place place) {
  const unsigned warp = running->index / lanes;
  const char* token = &tokens->warps[warp][meetings[warp].turn];
  release(token);
  meet(mask, 0, place);
  acquire(token);
}

std::uint64_t exchange(unsigned mask, std::uint64_t offer, int source, Place place) {
  const std::uint64_t* offers = meet(mask, offer, place);
  return (mask >> source & 1) != 0 ? offers[source] : 0x7ff4dead7ff4deadu;
}

unsigned ballot(unsigned mask, bool vote, Place place) {
  const std::uint64_t* votes_of = meet(mask, vote ? 1 : 0, place);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    votes |= (mask >> lane & 1) != 0 && votes_of[lane] != 0 ? 1u << lane : 0u;
  }
  return votes;
}

// As C++ has it: a fence before an atomic releases, one after it acquires.
void fence() {
  Fiber& self = *running;
  self.has_fenced = true;
  if (self.last_atomic != nullptr) {
    acquire(self.last_atomic);
  }
}

void before_atomic(const void* address) {
  yield();
  Fiber& self = *running;
  if (self.has_fenced) {
    release(address);
  }
}

void after_atomic(const void* address) {
  running->last_atomic = address;
  yield();
}

void* shared_memory(const void* tag, std::size_t bytes) {
  acquire(&tokens->shared);
  for (const SharedArray& array : shared_arrays) {
    if (array.tag == tag) {
      return array.memory;
    }
  }
  void* memory = std::malloc(bytes);
  std::memset(memory, 0xa5, bytes);  // what was there before is nobody's
  shared_arrays.push_back({tag, memory});
  release(&tokens->shared);
  return memory;
}

int lane_of_thread() { return static_cast<int>(running->index % lanes); }

}  // namespace stand_in
