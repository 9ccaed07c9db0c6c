// What nvcc's host code asks of the runtime behind the program's back: it registers each kernel by its mangled name,
// and launches what it has registered by an address of its own. Here a launch runs the kernel of the same name that
// this compiler has made of the same source, so that a library that nvcc has built runs without a GPU; the machine code
// in it is not looked at. With runtime.cpp and scheduler.cpp it is a libcudart.so.
#include <dlfcn.h>
#include <fatbinary_section.h>

#include <functional>
#include <map>
#include <string>

#include "cuda/norms.cuh"
#include "cuda/steps.cuh"
#include "runtime.h"

namespace {

using namespace fastreg;

using Launcher = std::function<cudaError_t(unsigned blocks, unsigned threads, void** arguments, cudaStream_t stream)>;
using Kernels = std::map<std::string, Launcher>;

template <class Work>
void add(Kernels& kernels, const std::string& name, void (*kernel)(Work)) {
  kernels[name] = [kernel](unsigned blocks, unsigned threads, void** arguments, cudaStream_t stream) {
    return cuda::launch_kernel(kernel, blocks, threads, stream, *static_cast<const Work*>(arguments[0]));
  };
}

// Both compilers mangle alike, so the name is that of this library's own symbol.
template <class Work>
void add(Kernels& kernels, void (*kernel)(Work)) {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(kernel), &info) != 0 && info.dli_sname != nullptr) {
    add(kernels, info.dli_sname, kernel);
  }
}

template <class E>
void add_chunk_kernels(Kernels& kernels) {
  add(kernels, cuda::penalty_chunks<E, 1>);
  add(kernels, cuda::penalty_chunks<E, 2>);
  add(kernels, cuda::penalty_chunks<E, 3>);
  add(kernels, cuda::penalty_chunks<E, 6>);
  add(kernels, cuda::penalty_chunks<E, 7>);
  add(kernels, cuda::penalty_chunks<E, 10>);
  add(kernels, cuda::penalty_chunks<E, 11>);
  add(kernels, cuda::norm_chunks<E>);
  add(kernels, cuda::scale_chunks<E>);
  add(kernels, cuda::step_chunks<E, Algorithm::sgd>);
  add(kernels, cuda::step_chunks<E, Algorithm::adamw>);
  add(kernels, cuda::step_norm_chunks<E>);
}

template <class E>
void add_strided_kernels(Kernels& kernels) {
  add(kernels, cuda::strided_chunks<E, 1>);
  add(kernels, cuda::strided_chunks<E, 2>);
  add(kernels, cuda::strided_chunks<E, 3>);
  add(kernels, cuda::strided_chunks<E, 6>);
  add(kernels, cuda::strided_chunks<E, 7>);
  add(kernels, cuda::strided_chunks<E, 10>);
  add(kernels, cuda::strided_chunks<E, 11>);
  add(kernels, cuda::strided_scale_chunks<E>);
  add(kernels, cuda::strided_step_chunks<E, Algorithm::sgd>);
  add(kernels, cuda::strided_step_chunks<E, Algorithm::adamw>);
  add(kernels, cuda::strided_step_norm_chunks<E>);
}

const Launcher* find_kernel(const std::string& name) {
  static const Kernels known = [] {
    Kernels kernels;
    add_chunk_kernels<F16>(kernels);
    add_chunk_kernels<BF16>(kernels);
    add_chunk_kernels<F32>(kernels);
    add_chunk_kernels<F64>(kernels);
    add_strided_kernels<F32>(kernels);
    add_strided_kernels<F64>(kernels);
    add(kernels, cuda::penalty_values<false>);
    add(kernels, cuda::penalty_values<true>);
    // Static functions are no symbols here; nvcc registers them as if they were not static.
    add(kernels, "_ZN7fastreg4cuda19strided_norm_chunksENS0_8NormWorkE", cuda::strided_norm_chunks);
    add(kernels, "_ZN7fastreg4cuda11norm_valuesENS0_8NormSumsE", cuda::norm_values);
    add(kernels, "_ZN7fastreg4cuda10step_rulesENS0_13StepRulesWorkE", cuda::step_rules);
    add(kernels, "_ZN7fastreg4cuda12step_outcomeENS0_15StepOutcomeWorkE", cuda::step_outcome);
    return kernels;
  }();
  const auto found = known.find(name);
  return found != known.end() ? &found->second : nullptr;
}

// By the address of nvcc's function for the host; null where no kernel of that name is known here.
std::map<const void*, const Launcher*>& registered() {
  static std::map<const void*, const Launcher*> kernels;
  return kernels;
}

}  // namespace

// NOLINTBEGIN(bugprone-reserved-identifier, readability-identifier-naming): the names are nvcc's.
extern "C" {

void** __cudaRegisterFatBinary(void* binary) {
  // The handle is only handed back; null tells a wrong binary apart at the next call.
  static void* handle = nullptr;
  return static_cast<const __fatBinC_Wrapper_t*>(binary)->magic == FATBINC_MAGIC ? &handle : nullptr;
}

void __cudaRegisterFatBinaryEnd(void**) {}

void __cudaUnregisterFatBinary(void**) { registered().clear(); }

char __cudaInitModule(void**) { return 1; }

void __cudaRegisterFunction(void** binary, const char* host_function, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  if (binary != nullptr) {
    registered()[host_function] = find_kernel(name);
  }
}

cudaError_t cudaLaunchKernel(const void* host_function, dim3 blocks, dim3 threads, void** arguments,
                             std::size_t shared_bytes, cudaStream_t stream) {
  const auto found = registered().find(host_function);
  if (found == registered().end() || found->second == nullptr) {
    return cudaErrorInvalidDeviceFunction;
  }
  if (blocks.y != 1 || blocks.z != 1 || threads.y != 1 || threads.z != 1 || shared_bytes != 0) {
    return cudaErrorNotSupported;
  }
  return (*found->second)(blocks.x, threads.x, arguments, stream);
}

// What a launch by <<<>>> compiles to. csrc/cuda has none, but nvcc makes these calls for every kernel.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host_function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(host_function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 blocks, dim3 threads, void** arguments,
                               std::size_t shared_bytes, cudaStream_t stream) {
  return cudaLaunchKernel(kernel, blocks, threads, arguments, shared_bytes, stream);
}

cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, std::size_t*, void*) { return cudaErrorNotSupported; }

}  // extern "C"
// NOLINTEND(bugprone-reserved-identifier, readability-identifier-naming)
