// The stand-in refuses what a GPU would not forgive, delays what a GPU may delay, and says where.
#include <cstring>
#include <string>

#include "cuda/language.h"
#include "support.h"

namespace fastreg::test {
namespace {

struct Nothing {
  int* counter;
};

void barrier_for_some(Nothing) {
  if (threadIdx.x < 40) {
    __syncthreads();
  }
}
void barriers_in_two_places(Nothing) {
  if (threadIdx.x % 2 == 0) {  // NOLINT(bugprone-branch-clone): two places are what it is about
    __syncthreads();
  } else {
    __syncthreads();
  }
}
void shuffle_for_some(Nothing) {
  if (threadIdx.x % 32 < 16) {
    __shfl_down_sync(0xffffffffu, 1.0, 1);
  }
}
void shuffle_without_itself(Nothing) { __shfl_down_sync(0x0000ffffu, 1.0, 1); }
void vote_and_shuffle(Nothing) {
  if (threadIdx.x % 2 == 0) {
    __ballot_sync(0xffffffffu, 1);
  } else {
    __shfl_down_sync(0xffffffffu, 1.0, 1);
  }
}
void shuffle_beyond_the_block(Nothing) { __shfl_down_sync(0xffffffffu, 1.0, 1); }
void count_threads(Nothing work) { ++*work.counter; }

void must_refuse(void (*kernel)(Nothing), unsigned threads, const std::string& wanted) {
  stand_in::reset(3);
  const cudaError_t error = cuda::launch_kernel(kernel, 1u, threads, nullptr, Nothing{nullptr});
  CHECK(error == cudaSuccess || error == cudaErrorLaunchFailure, static_cast<int>(error));
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure, wanted, "was not refused");
  const std::string why = stand_in::refusal();
  CHECK(why.find(wanted) != std::string::npos, "[", why, "] lacks", wanted);
  CHECK(why.find("test_stand_in.cpp:") != std::string::npos, why, "names no place");
  stand_in::reset(3);
}

}  // namespace

TEST(refuses_divergent_barriers) {
  must_refuse(barrier_for_some, 64, "divergent __syncthreads");
  must_refuse(barriers_in_two_places, 64, "divergent __syncthreads");
}

TEST(refuses_divergent_shuffles) {
  must_refuse(shuffle_for_some, 64, "has left the kernel");
  must_refuse(shuffle_without_itself, 64, "not in its own mask");
  must_refuse(vote_and_shuffle, 32, "divergent shuffle or vote");
  must_refuse(shuffle_beyond_the_block, 20, "which does not exist");
}

TEST(refuses_launches_over_the_limits) {
  stand_in::reset(1);
  int counter = 0;
  for (const auto& [blocks, threads] : {std::pair{0u, 32u}, {1u, 0u}, {1u, 1025u}, {0x80000000u, 32u}}) {
    CHECK(cuda::launch_kernel(count_threads, blocks, threads, nullptr, Nothing{&counter}) ==
              cudaErrorInvalidConfiguration,
          blocks, threads);
  }
  cudaStream_t stream = nullptr;
  cudaSetDevice(1);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaSetDevice(0);
  CHECK(cuda::launch_kernel(count_threads, 1u, 32u, stream, Nothing{&counter}) == cudaErrorInvalidResourceHandle,
        "a stream of another device");
  cudaGetLastError();
  stand_in::drain();
  CHECK(counter == 0, "a refused launch has run");
}

TEST(streams_delay) {
  int late = 0;
  for (std::uint64_t seed = 1; seed <= 40; ++seed) {
    stand_in::reset(seed);
    cudaStream_t stream = nullptr;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    int counter = 0;
    cuda::launch_kernel(count_threads, 3u, 32u, stream, Nothing{&counter});
    late += counter == 0 ? 1 : 0;
    cudaStreamSynchronize(stream);
    CHECK(counter == 96, counter);
  }
  CHECK(late > 10 && late < 40, late, "of 40 launches had not run when they were queued");
}

TEST(events_order_streams) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    stand_in::reset(seed);
    cudaStream_t first = nullptr;
    cudaStream_t second = nullptr;
    cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    cudaEvent_t event = nullptr;
    cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    char byte = 0;
    cudaMemsetAsync(&byte, 1, 1, first);
    cudaEventRecord(event, first);
    cudaStreamWaitEvent(second, event, 0);
    cudaMemsetAsync(&byte, 2, 1, second);
    cudaStreamSynchronize(second);
    stand_in::drain();
    CHECK(byte == 2, static_cast<int>(byte));
    cudaEventDestroy(event);
  }
}

}  // namespace fastreg::test
