// Where nvcc and other compilers differ. nvcc knows the device language; any other compiler must find a header
// `device_language.h` that provides it (tests/cuda has one that runs kernels on the host).
//
// Kernels and launches use three macros instead of nvcc's own syntax:
//   FASTREG_SHARED(type, name, count)                     an array in the block's shared memory
//   FASTREG_LAUNCH(kernel, blocks, threads, stream, ...)  starts a kernel; errors are left for cudaGetLastError
//   FASTREG_UNROLL                                        before a loop of constant length
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#ifdef __CUDACC__

#define FASTREG_SHARED(type, name, count) __shared__ type name[count]
#define FASTREG_LAUNCH(kernel, blocks, threads, stream, ...) kernel<<<blocks, threads, 0, stream>>>(__VA_ARGS__)
#define FASTREG_UNROLL _Pragma("unroll")
#define FASTREG_DEVICE static __device__ __forceinline__
#define FASTREG_BOUNDS(threads, blocks_per_processor) __launch_bounds__(threads, blocks_per_processor)

#else

#include "device_language.h"

#define FASTREG_UNROLL
#define FASTREG_DEVICE [[maybe_unused]] static inline
#define FASTREG_BOUNDS(threads, blocks_per_processor)

#endif
