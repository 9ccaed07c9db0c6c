// Where nvcc and other compilers differ. nvcc knows the device language; any other compiler must find a header
// `device_language.h` that provides it (tests/cuda has one that runs kernels on the host).
//
// Kernels and launches use these instead of nvcc's own syntax:
//   FASTREG_SHARED(type, name, count)  an array in the block's shared memory
//   FASTREG_UNROLL                     before a loop of constant length
//   FASTREG_NO_UNROLL                  before one that is better left as it is
//   FASTREG_ASSUME_GLOBAL(pointer)     a pointer that was read from memory points to global memory: without it, loads
//                                      and stores are those that first ask which kind of memory it is
//   launch_kernel                      starts a kernel that takes one structure, and returns the error of this launch
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#ifdef __CUDACC__

#define FASTREG_SHARED(type, name, count) __shared__ type name[count]
#define FASTREG_UNROLL _Pragma("unroll")
#define FASTREG_NO_UNROLL _Pragma("unroll 1")
#define FASTREG_ASSUME_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))
#define FASTREG_DEVICE static __device__ __forceinline__
#define FASTREG_MEMBER __device__ __forceinline__
#define FASTREG_BOUNDS(threads, blocks_per_processor) __launch_bounds__(threads, blocks_per_processor)

namespace fastreg::cuda {

template <class Work>
cudaError_t launch_kernel(void (*kernel)(Work), unsigned blocks, unsigned threads, cudaStream_t stream, Work work) {
  void* arguments[] = {&work};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks), dim3(threads), arguments, 0, stream);
}

}  // namespace fastreg::cuda

#else

#include "device_language.h"

#define FASTREG_UNROLL
#define FASTREG_NO_UNROLL
#define FASTREG_ASSUME_GLOBAL(pointer)
#define FASTREG_DEVICE [[maybe_unused]] static inline
#define FASTREG_MEMBER inline
#define FASTREG_BOUNDS(threads, blocks_per_processor)

#endif
