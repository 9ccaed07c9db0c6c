// CUDA's device language for an ordinary compiler: what csrc/cuda uses of it, and no more. Never shipped.
//
// A block's threads are fibers (scheduler.cpp), so that a barrier is a switch to another fiber. Arithmetic is the
// host's; CUDA's own headers give the half types.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include <cuda_runtime_api.h>

namespace stand_in {

struct Place {
  const char* file;
  int line;
};

// ---- what device code asks of the scheduler

extern uint3 thread_index;
extern uint3 block_index;
extern uint3 grid_size;
extern uint3 block_size;

void barrier(Place place);
void warp_barrier(unsigned mask, Place place);
// Gives every lane of `mask` what it offers and gives back what lane `source` did; garbage from lanes outside.
std::uint64_t exchange(unsigned mask, std::uint64_t offer, int source, Place place);
unsigned ballot(unsigned mask, bool vote, Place place);
void fence();
// Around an atomic operation: switches, and models relaxed order.
void before_atomic(const void* address);
void after_atomic(const void* address);
// The block's array for a declaration, which `tag` stands for. From the heap, so that its bounds are seen.
void* shared_memory(const void* tag, std::size_t bytes);
int lane_of_thread();

// ---- launches

// Runs `thread` on each thread of the grid when the stream comes to it.
cudaError_t queue_launch(unsigned blocks, unsigned threads, cudaStream_t stream, std::function<void()> thread);

}  // namespace stand_in

// NOLINTBEGIN(bugprone-macro-parentheses): a type cannot stand in parentheses.
#define FASTREG_SHARED(type, name, count) \
  static const char name##_tag = 0;       \
  type* const name =                      \
      static_cast<type*>(stand_in::shared_memory(&name##_tag, sizeof(type) * static_cast<std::size_t>(count)))
// NOLINTEND(bugprone-macro-parentheses)

namespace fastreg::cuda {

template <class Work>
cudaError_t launch_kernel(void (*kernel)(Work), unsigned blocks, unsigned threads, cudaStream_t stream, Work work) {
  return stand_in::queue_launch(blocks, threads, stream, [=] { kernel(work); });
}

}  // namespace fastreg::cuda

// NOLINTBEGIN(bugprone-reserved-identifier, readability-identifier-naming): the names are CUDA's.
#define threadIdx stand_in::thread_index
#define blockIdx stand_in::block_index
#define gridDim stand_in::grid_size
#define blockDim stand_in::block_size

// As default arguments, __builtin_FILE and __builtin_LINE are the caller's.
#define FASTREG_STAND_IN_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(FASTREG_STAND_IN_CALLER) { stand_in::barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTREG_STAND_IN_CALLER) {
  stand_in::warp_barrier(mask, {file, line});
}
inline void __threadfence() { stand_in::fence(); }

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTREG_STAND_IN_CALLER) {
  return stand_in::ballot(mask, predicate != 0, {file, line});
}

inline double __shfl_down_sync(unsigned mask, double value, unsigned delta, FASTREG_STAND_IN_CALLER) {
  std::uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const int lane = stand_in::lane_of_thread();
  const int source = lane + static_cast<int>(delta);
  bits = stand_in::exchange(mask, bits, source < 32 ? source : lane, {file, line});
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

template <class T>
T __ldcg(const T* address) {
  return *address;
}

inline unsigned atomicAdd(unsigned* address, unsigned value) {
  stand_in::before_atomic(address);
  const unsigned old = __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
  stand_in::after_atomic(address);
  return old;
}

inline unsigned atomicExch(unsigned* address, unsigned value) {
  stand_in::before_atomic(address);
  const unsigned old = __atomic_exchange_n(address, value, __ATOMIC_RELAXED);
  stand_in::after_atomic(address);
  return old;
}

// NOLINTEND(bugprone-reserved-identifier, readability-identifier-naming)

using std::copysign;
using std::fabs;
using std::ldexp;
using std::memcpy;
using std::sqrt;
